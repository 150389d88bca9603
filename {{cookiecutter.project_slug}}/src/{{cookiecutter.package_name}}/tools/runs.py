"""List all runs and what became of each, the one used last first.

    python -m <package> runs                        # those in runs/
    python -m <package> runs runs_dir=runs/debug
    python -m <package> runs --json                 # for programs

A run is one of: finished; live, a process trains it now; pruned by a sweep; resumable, the same
command continues it; broken, it cannot be used or not be resumed. Reads files and imports no torch.
"""

import contextlib
import csv
import json
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

import yaml

from ..engine.files import CHECKSUMS
from ..engine.run import RunFolder

SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError)


@dataclass
class Listing:
    """A line of the table: what the folder of a run says about it."""

    run: str
    state: str
    last_used: str
    metric: str = ""
    best: float | None = None
    device: str = ""
    epochs: int | None = None
    steps: int | None = None
    seconds: float | None = None  # of training, over all its processes
    why: str = ""  # it is broken


def listing(run: RunFolder) -> Listing:
    files = [path.stat().st_mtime for path in (run.path, *run.path.rglob("*.*"))]
    line = Listing(
        run=str(run.path),
        state="live" if run.is_live() else "resumable",
        last_used=f"{datetime.fromtimestamp(max(files)):%Y-%m-%d %H:%M:%S}",
    )
    if line.state == "live" and not run.config.is_file():
        return line  # it has just begun
    try:
        _read(run, line)
        line.why = _cut_off(run, line.state)
    except BROKEN as error:
        line.why = " ".join(f"{type(error).__name__}: {error}".split())
    if line.why:
        line.state = "broken"
    return line


def _read(run: RunFolder, line: Listing) -> None:
    cfg = yaml.load(run.config.read_text(encoding="utf-8"), SAFE_LOADER)
    devices = cfg["trainer"]["devices"]
    num_devices = len(devices) if isinstance(devices, list) else devices
    line.device = cfg["device"]["name"] + (f" x {num_devices}" if num_devices != 1 else "")
    line.metric = cfg["monitor"]
    with contextlib.suppress(FileNotFoundError):
        line.seconds = _seconds((run.path / "log.txt").read_text(encoding="utf-8").splitlines())
    if run.metrics.is_file():
        results = json.loads(run.metrics.read_text(encoding="utf-8"))
        line.epochs, line.steps = results["epochs"], results["steps"]
        line.best = results.get(f"best {line.metric}")
        line.state = "finished" if line.state == "resumable" else line.state
        return
    if run.pruned.is_file() and line.state == "resumable":
        line.state = "pruned"
    metrics = run.path / "metrics.csv"
    with contextlib.suppress(FileNotFoundError), metrics.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get(line.metric)]
        if rows:
            best_of = min if cfg["mode"] == "min" else max
            line.best = best_of(float(row[line.metric]) for row in rows)
            line.epochs, line.steps = int(rows[-1]["epoch"]) + 1, int(rows[-1]["step"]) + 1


def _seconds(log: Sequence[str]) -> float:
    """Add up the times of log.txt. Each process begins with the line that says where it writes."""
    total, begun, last = timedelta(), None, None
    for said in log:
        try:
            when = datetime.strptime(said[:23], "%Y-%m-%d %H:%M:%S,%f")
        except ValueError:  # a second line of a message
            continue
        if begun is None or "; writing to " in said:
            total += last - begun if begun and last else timedelta()
            begun = when
        last = when
    return (total + (last - begun if begun and last else timedelta())).total_seconds()


def _cut_off(run: RunFolder, state: str) -> str:
    """Say which checkpoint lacks its end, if the run depends on it."""
    if state == "finished":
        weights = run.weights()
        return f"{weights.name} is cut off" if weights and not _has_its_end(weights) else ""
    checkpoints = run.checkpoints()
    if state == "live" or not checkpoints or any(map(_has_its_end, checkpoints)):
        return ""
    return "no checkpoint is whole, so the same command starts from scratch"


def _has_its_end(checkpoint: Path) -> bool:
    if checkpoint.is_dir():  # written in parts by several ranks
        return (checkpoint / CHECKSUMS).is_file()
    return zipfile.is_zipfile(checkpoint)


def listings(runs_dir: Path) -> list[Listing]:
    """Return all runs of a folder, the one used last first."""
    folders = [
        path.parent for name in ("lock", "config.yaml") for path in runs_dir.glob(f"*/{name}")
    ]
    runs = [RunFolder(folder) for folder in sorted(set(folders))]
    # A run that was killed before it wrote anything has nothing to show.
    begun = [run for run in runs if run.is_live() or [*run.path.iterdir()] != [run.lock]]
    found = [listing(run) for run in begun]
    return sorted(found, key=lambda line: line.last_used, reverse=True)


def columns(table: Sequence[Sequence[str]], *, right: bool = False) -> str:
    """Return lines in which the words of each column stand below each other.

    Args:
        table: the words, line by line.
        right: align all columns but the first to the right.
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]

    def align(column: int, word: str) -> str:
        width = widths[column]
        return word.rjust(width) if right and column else word.ljust(width)

    return "\n".join("  ".join(map(align, range(len(line)), line)).rstrip() for line in table)


def show(found: Sequence[Listing]) -> None:
    table = [["run", "state", "best", "", "epochs", "steps", "time", "last used", "device"]]
    for line in found:
        time = "" if line.seconds is None else str(timedelta(seconds=round(line.seconds)))
        best = "" if line.best is None else f"{line.best:.4f}"
        counts = ["" if count is None else str(count) for count in (line.epochs, line.steps)]
        metric = line.metric if best else ""
        table.append(
            [line.run, line.state, best, metric, *counts, time, line.last_used, line.device]
        )
    print(columns(table))
    for line in found:
        if line.why:
            print(f"{line.run} is broken: {line.why}")


def main() -> None:
    runs_dir, as_json = Path("runs"), False
    for argument in sys.argv[1:]:
        if argument in ("-h", "--help"):
            print(__doc__)
            return
        if argument == "--json":
            as_json = True
        elif argument.startswith("runs_dir="):
            runs_dir = Path(argument.removeprefix("runs_dir="))
        else:
            sys.exit(f"{argument} is not known. There are: runs_dir=FOLDER, --json.")
    if not runs_dir.is_dir():
        sys.exit(f"There is no folder {runs_dir}. Train a model, or pass runs_dir=FOLDER.")
    found = listings(runs_dir)
    if as_json:
        print(json.dumps([asdict(line) for line in found], indent=2))
    elif found:
        show(found)
    else:
        print(f"There is no run in {runs_dir}.")


if __name__ == "__main__":
    main()
