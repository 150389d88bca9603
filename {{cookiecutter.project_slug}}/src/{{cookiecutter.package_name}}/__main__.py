"""One command with sub-commands: `python -m <package> train model=NAME`."""

import importlib
import sys
from pathlib import Path

COMMANDS = {
    "train": (".train", "train a model, and test its best checkpoint"),
    "evaluate": (".evaluate", "test a trained model again"),
    "predict": (".predict", "use a trained model on something of your own"),
}
TOOLS = {
    "rehearse": (".tools.rehearse.__main__", "would it train on MPS, CUDA and the CPU?"),
    "doctor": (".tools.doctor.__main__", "is this machine set up right?"),
    "benchmark": (".tools.benchmark.__main__", "how fast is it here, beside a loop by hand?"),
    "sweep": (".tools.sweep.__main__", "train many runs: a grid, seeds, folds, a search"),
    "runs": (".tools.runs", "list all runs, and what became of each"),
}


def main() -> None:
    tools_are_here = Path(__file__).with_name("tools").is_dir()  # a project works without them
    commands = COMMANDS | TOOLS if tools_are_here else COMMANDS
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: python -m {__package__} COMMAND [...]\n")
        print("\n".join(f"  {command:10} {what}" for command, (_, what) in commands.items()))
        print("\nCOMMAND --help says more.")
        return
    if name not in commands:
        sys.exit(f"There is no command {name!r}. There are: {', '.join(commands)}.")
    sys.argv = [f"{sys.argv[0]} {name}", *rest]
    importlib.import_module(commands[name][0], __package__).main()


if __name__ == "__main__":
    main()
