"""Tries idioms in one process that has imported PyTorch once; every command is a fork of it.

    python -m idioms.runs SOURCE FOLDER [--rehearse] [--all | NAME ...]   in tests/; a line of JSON each

Each idiom is trained, trained again while it is killed three times, tested and rehearsed; once with
the fast loop and once without. Without names it serves the tests.
"""

import contextlib
import csv
import functools
import hashlib
import importlib
import json
import logging
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .table import HERE, IDIOMS, PACKAGE, Idiom

SMALL = (
    "trainer.accelerator=cpu",
    "trainer.max_epochs=4",
    "trainer.log_every_n_steps=1",
    "save.every_n_steps=3",
    "show=progress",
)
KILLS = (None, 8, 3)  # at this batch of a process; the first one is the idiom's


class Process:
    """Forks that each give one command, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = ""

    def __call__(self, command: Callable[[], Any]) -> int:
        """Return the exit status; of a killed command, minus the signal."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "output.txt"
        if not (pid := os.fork()):
            os._exit(self._child(log, command))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.output = log.read_text(errors="replace")
        return status

    def _child(self, log: Path, command: Callable[[], Any]) -> int:
        file = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(file, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(self.folder)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
        logging.getLogger("lightning").setLevel(logging.WARNING)
        try:
            command()
            status = 0
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            status = 1
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        return status


def compose(name: str, *overrides: str) -> Any:
    """Compose a config as the command line does."""
    import hydra

    with hydra.initialize_config_module(f"{PACKAGE}.configs", version_base="1.3"):
        return hydra.compose(name, list(overrides))


def command(name: str, cfg: Any) -> Any:
    """Give `train`, `evaluate` or `predict`."""
    return getattr(importlib.import_module(f"{PACKAGE}.{name}"), name)(cfg)


def at_call(owner: Any, name: str, count: int, do: Callable[[], None]) -> None:
    """Call `do` at the beginning of the `count`-th call of a method."""
    whole, calls = getattr(owner, name), iter(range(1, 1_000_000))

    if name == "training_step" and "dataloader_iter" in whole.__annotations__:

        def disturbed(self: Any, dataloader_iter: Any) -> Any:
            if next(calls) == count:
                do()
            return whole(self, dataloader_iter)
    else:

        def disturbed(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == count:
                do()
            return whole(*args, **kwargs)

    setattr(owner, name, disturbed)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise ConnectionAbortedError("a fault of the test")


def the_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


def result(run: Path) -> dict[str, Any]:
    """What must not depend on where a run was stopped."""
    import torch

    def load(path: Path) -> Any:
        return torch.load(path, map_location="cpu", weights_only=True)

    def digest(path: Path) -> str:
        sha = hashlib.sha256()
        for name, tensor in sorted(load(path)["state_dict"].items()):
            sha.update(name.encode() + tensor.numpy().tobytes())
        return sha.hexdigest()

    kept = [path for path in run.rglob("*.ckpt") if not path.name.startswith(("step_", "on_exc"))]
    newest = max(run.glob("checkpoints/step_*.ckpt"))
    state = load(newest)
    rows = []
    if (run / "metrics.csv").is_file():
        with (run / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:  # how busy the machine is
            for name in [one for one in row if "DeviceStats" in one]:
                del row[name]
    return {
        "weights": {path.relative_to(run).as_posix(): digest(path) for path in kept},
        "optimizers": {newest.name: repr((state["optimizer_states"], state["lr_schedulers"]))},
        "rows": rows,
        "metrics": (run / "metrics.json").read_text(),
    }


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    lines = []
    for kind in ("weights", "optimizers", "metrics"):
        if found[kind] != wanted[kind]:
            lines.append(f"{kind}: {str(found[kind])[:300]} != {str(wanted[kind])[:300]}")
    if found["rows"] != wanted["rows"]:
        pairs = list(zip(found["rows"], wanted["rows"], strict=False))
        other = next((f"{a} != {b}" for a, b in pairs if a != b), "")
        lines.append(f"rows: {len(found['rows'])} != {len(wanted['rows'])}; {other}")
    return "; ".join(lines)


def last_words(output: str) -> str:
    return " | ".join([line for line in output.splitlines() if line.strip()][-4:])[-700:]


class Trial:
    """One idiom in a folder."""

    def __init__(self, idiom: Idiom, folder: Path, *extra: str) -> None:
        self.idiom, self.folder = idiom, folder
        self.overrides = (*SMALL, *idiom.command(), *extra)
        self.cfg = compose("train", *self.overrides)
        shutil.rmtree(folder, ignore_errors=True)

    def train(self, where: str, prepare: Callable[[], None] = lambda: None) -> tuple[int, str]:
        process = Process(self.folder / where)
        status = process(lambda: (prepare(), command("train", self.cfg)))
        return status, process.output

    def trains(self) -> str:
        status, output = self.train("whole")
        if status:
            return f"status {status}: {last_words(output)}"
        again, output = self.train("whole")
        return (
            "" if (again, "is finished" in output) == (0, True) else f"again: {last_words(output)}"
        )

    def resumes(self) -> str:
        module, _, name = f"{HERE}.{self.idiom.task}".rpartition(".")
        task = getattr(importlib.import_module(module), name)
        for number, batch in enumerate(KILLS):
            do, wanted = (fail, 1) if number == 1 else (kill, -signal.SIGKILL)
            arguments = (task, "training_step", batch or self.idiom.first, do)
            status, output = self.train("killed", functools.partial(at_call, *arguments))
            if status != wanted:
                return f"kill {number + 1} ended with {status}: {last_words(output)}"
        status, output = self.train("killed")
        if status:
            return f"resumed: status {status}: {last_words(output)}"
        if "Resuming from" not in output:
            return "it did not resume"
        found, wanted = (result(the_run(self.folder / name)) for name in ("killed", "whole"))
        return difference(found, wanted)

    def evaluates(self) -> str:
        run = the_run(self.folder / "whole")
        process = Process(self.folder / "evaluated")
        always = (f"run={run}", "trainer.accelerator=cpu", "show=progress")
        cfg = compose("evaluate", *always, *self.idiom.evaluate)
        if process(lambda: command("evaluate", cfg)):
            return last_words(process.output)
        found = json.loads((run / "evaluate/metrics.json").read_text())
        wanted = json.loads((run / "metrics.json").read_text())
        tested = [name for name in wanted if name.startswith("test/")]
        if self.idiom.tests and not tested:
            return "nothing was tested"
        other = [f"{n}: {found.get(n)} != {wanted[n]}" for n in tested if found.get(n) != wanted[n]]
        return ", ".join(other)

    def rehearses(self) -> str:
        process = Process(self.folder / "rehearsed")
        overrides = [one for one in self.overrides if not one.startswith("trainer.accelerator")]

        def rehearse() -> None:
            sys.argv = ["rehearse", *overrides, "targets=[mps]"]
            importlib.import_module(f"{PACKAGE}.tools.rehearse.__main__").main()

        if process(rehearse) == 0:
            return ""
        found = re.findall(r".*fails.*", process.output)
        return " | ".join(found)[:600] or last_words(process.output)


def trial(name: str, folder: Path, *, rehearse: bool) -> dict[str, str]:
    """What is wrong with an idiom: for each part a text, empty if it is right."""
    outcome: dict[str, str] = {"name": name}
    results = {}
    for loop in ("true", "false"):
        one = Trial(IDIOMS[name], folder / loop, f"fast_loop={loop}")
        suffix = "" if loop == "true" else ", without fast_loop"
        outcome[f"trains{suffix}"] = one.trains()
        if outcome[f"trains{suffix}"]:
            continue
        results[loop] = result(the_run(one.folder / "whole"))
        outcome[f"resumes{suffix}"] = one.resumes()
        if loop == "true":
            outcome["evaluates"] = one.evaluates()
            if rehearse:
                outcome["rehearses"] = one.rehearses()
    if len(results) == 2:
        outcome["fast_loop is exact"] = difference(results["true"], results["false"])
    return outcome


def give(argv: list[str], folder: Path) -> dict[str, Any]:
    """Give a whole command, as in a shell: its status and output."""

    def command() -> None:
        sys.argv = ["project", *argv]
        importlib.import_module(f"{PACKAGE}.__main__").main()

    process = Process(folder)
    status = process(command)
    return {"status": status, "output": process.output}


def serve(folder: Path) -> None:
    """Answer each line of standard input: {"name": ...} or {"argv": [...], "folder": ...}."""
    for line in sys.stdin:
        asked = json.loads(line)
        if "argv" in asked:
            answer = give(asked["argv"], Path(asked["folder"]))
        else:
            answer = trial(asked["name"], folder_of(folder, asked["name"]), rehearse=False)
        print(json.dumps(answer), flush=True)


def folder_of(folder: Path, name: str) -> Path:
    return folder / re.sub(r"\W+", "_", name)


def main() -> None:
    source, folder, *names = sys.argv[1:]
    sys.path.insert(0, source)
    for module in ("train", "predict", "engine.trainer", "evaluate", "idioms.finetuning"):
        importlib.import_module(f"{PACKAGE}.{module}")
    identity = importlib.import_module(f"{PACKAGE}.engine.run.identity")
    identity.essence = functools.cache(identity.essence)  # of the same code, in each fork
    identity.identity(compose("train"))
    if not names:
        serve(Path(folder))
    rehearse = "--rehearse" in names
    for name in IDIOMS if "--all" in names else names:
        if not name.startswith("--"):
            outcome = trial(name, folder_of(Path(folder), name), rehearse=rehearse)
            print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
