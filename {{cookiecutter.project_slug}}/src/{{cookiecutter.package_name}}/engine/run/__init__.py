"""One run: its identity, its folder, the signals that end it."""

from .folder import RunFolder, find, initial_checkpoint, write_json
from .identity import identity, plain_config, training_limits
from .open import Run, num_parameters, open_run, run_folder, validate
from .signals import Signals
from .unused import unused_groups

__all__ = [
    "Run",
    "RunFolder",
    "Signals",
    "find",
    "identity",
    "initial_checkpoint",
    "num_parameters",
    "open_run",
    "plain_config",
    "run_folder",
    "training_limits",
    "unused_groups",
    "validate",
    "write_json",
]
