"""How a project runs. Nobody edits it in the ordinary course; `cruft update` replaces it whole."""

VERSION = "2.0"
ROOT = __name__.rpartition(".")[0]  # the package that this engine runs
