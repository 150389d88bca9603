"""How long until something happens: until a command answers, and until the first step is done.

    python benchmarks/start_up.py my_lightning_project    # where the generated project is installed

- `--help`, `--cfg job`, a group and a key that are not there: against `import lightning`, which is what
  they would wait for if the project imported it first;
- the first step of the default job: against bare Lightning with the same model, data and batches, and
  neither Hydra, nor a logger, bar, checkpoint or summary.

Each in a process of its own, in turns, after one round that fills the disk's cache. `seconds` is what a
user waits; `CPU` is the processor's own time, which a busy machine changes less. `--json FILE` writes
all that was measured.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")


class FirstStep:
    """A callback that ends the process after the first step."""

    def __new__(cls) -> Any:
        from lightning import Callback

        class AfterTheFirstStep(Callback):
            def on_train_batch_end(self, *_: Any) -> None:
                os._exit(0)

        return AfterTheFirstStep()


def bare(package: str) -> None:
    """Train as a user would who has the model and nothing else."""
    from importlib import import_module

    import lightning as L
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from torch.utils.data import DataLoader, TensorDataset

    class Task(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            mlp = import_module(f"{package}.models.mlp").MLP
            self.model = mlp(64, num_classes=10, width=256, num_layers=2, dropout=0.3)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            inputs, targets = batch
            return torch.nn.functional.cross_entropy(self.model(inputs), targets)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.003)

    pixels, digits = load_digits(return_X_y=True)
    train, _ = train_test_split(range(len(digits)), stratify=digits, random_state=42)
    inputs = torch.from_numpy(pixels[train] / 16).float()
    data = TensorDataset(inputs, torch.from_numpy(digits[train]))
    trainer = L.Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FirstStep()],
    )
    trainer.fit(Task(), DataLoader(data, 32, shuffle=True))


def commands(package: str) -> dict[str, list[str]]:
    train = ["-m", package, "train"]
    first = f"+show.first._target_={Path(__file__).stem}.FirstStep"
    return {
        "import lightning": ["-c", "import lightning, os; os._exit(0)"],
        "--help": [*train, "--help"],
        "--cfg job": [*train, "--cfg", "job"],
        "model=mpl": [*train, "model=mpl"],
        "optimizer.rl=1": [*train, "optimizer.rl=1"],
        "first step, bare": [str(Path(__file__).resolve()), "--bare", package],
        "first step": [*train, first],
    }


def timed(command: list[str]) -> tuple[float, float]:
    """Return the seconds, and the processor's seconds."""
    here = Path(__file__).resolve().parent
    path = os.pathsep.join(filter(None, (str(here), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:  # no run stands there yet
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *command],
            env={**os.environ, "PYTHONPATH": path},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=600,
        )
        seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    refused = any("mpl" in word or ".rl" in word for word in command)
    if done.returncode != refused:
        raise SystemExit(f"{command} ended with {done.returncode}: {done.stderr}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(package: str, rounds: int) -> dict[str, list[tuple[float, float]]]:
    ways = commands(package)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, command in ways.items():
            took = timed(command)
            if turn:
                found[way].append(took)
    return found


def report(found: dict[str, list[tuple[float, float]]]) -> None:
    print(f"{'':18}{'seconds':>9} {'lowest':>7} {'highest':>8} {'CPU':>7}   of it: seconds, CPU")
    for way, took in found.items():
        base = found["first step, bare" if way == "first step" else "import lightning"]
        seconds, processor = zip(*took, strict=True)
        ratios = [
            statistics.median(a[i] / b[i] for a, b in zip(took, base, strict=True)) for i in (0, 1)
        ]
        print(
            f"{way:18}{statistics.median(seconds):9.2f} {min(seconds):7.2f} {max(seconds):8.2f}"
            f" {statistics.median(processor):7.2f}   {ratios[0]:14.2f} {ratios[1]:6.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("package", help="the generated project's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="all that was measured, to this file")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.bare:
        bare(asked.package)
        return
    found = measure(asked.package, asked.rounds)
    report(found)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
