"""How much faster N devices train than one: the same command, with a process for each.

    python benchmarks/scaling.py my_lightning_project 1,2 experiment=convnet
    python benchmarks/scaling.py my_lightning_project 1,2 experiment=gpt2_small trainer.strategy=fsdp
    python benchmarks/scaling.py my_lightning_project 1,2 trainer.accelerator=cpu   # to try it out

Each device gets the batch of one, so N devices do N times the work of a step: the efficiency is what
they do of N times the work of one in a second. The counts take turns; each number is a median. Where
the experiment reads text, a long one is made up for it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning import Callback

WARM_UP, MEASURED = 20, 60  # steps
TEXT = 24_000_000  # bytes
RESULT = "SCALING_RESULT"  # an environment variable: the file for what a run measured
QUICK = (
    "~callbacks",
    "show=progress",
    "resume=never",
    "trainer.limit_val_batches=0",
    "trainer.limit_test_batches=1",
    "trainer.max_epochs=1000",
    f"trainer.max_steps={WARM_UP + MEASURED}",
    "trainer.val_check_interval=1.0",
    "+trainer.enable_checkpointing=false",
    "+show.clock._target_=scaling.Clock",
)


class Clock(Callback):
    """Measures from the end of the warm-up to the end of the training, with the device's work."""

    batches = 0

    def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == WARM_UP and not hasattr(self, "started"):
            self.started, self.batches = self._now(task), 0
        self.batches += 1

    def on_train_end(self, trainer: Any, task: Any) -> None:
        import torch

        seconds = (self._now(task) - self.started) / self.batches
        size = trainer.datamodule.batch_size
        gpu = task.device.type == "cuda"
        measured = {
            "ms_a_batch": 1000 * seconds,
            "samples_a_second": size * trainer.world_size / seconds,
            "GB_a_device": torch.cuda.max_memory_allocated() / 1e9 if gpu else None,
            "device": torch.cuda.get_device_name() if gpu else "cpu",
            "batch_size": size,
        }
        if trainer.is_global_zero:
            Path(os.environ[RESULT]).write_text(json.dumps(measured))

    def _now(self, task: Any) -> float:
        import torch

        if task.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def measure(package: str, devices: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Return what a run on so many devices measures."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    start = (*torchrun, f"--nproc-per-node={devices}", "-m", f"{package}.train")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    done = subprocess.run(
        [*start, f"runs_dir={folder}/runs", *QUICK, *overrides],
        env={**os.environ, "PYTHONPATH": path, RESULT: str(result)},
        capture_output=True,
        text=True,
        check=False,
    )
    if not result.is_file():
        sys.exit(f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return dict(json.loads(result.read_text()))


def text(folder: Path) -> Path:
    from pydoc_data.topics import topics

    page = "\n\n".join(topics.values())
    path = folder / "text.txt"
    path.write_text(page * (TEXT // len(page) + 1), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("package", help="the generated project's")
    parser.add_argument("counts", help="of devices: 1,2,4")
    parser.add_argument("overrides", nargs="*", help="of train")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_intermixed_args()
    package, overrides = asked.package, list(asked.overrides)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if any("gpt" in override for override in overrides):
            overrides += [f"data.path={text(folder)}", f"data.cache={folder}"]
        found: dict[int, list[dict[str, Any]]] = {
            int(count): [] for count in asked.counts.split(",")
        }
        for _ in range(asked.rounds):
            for count, rounds in found.items():
                rounds.append(measure(package, count, folder, overrides))
                print(json.dumps({"devices": count, **rounds[-1]}), flush=True)
    rates = {
        count: statistics.median(each["samples_a_second"] for each in rounds)
        for count, rounds in found.items()
    }
    one = rates[min(rates)] / min(rates)
    print("\ndevices  samples/s  efficiency")
    for count, rate in rates.items():
        print(f"{count:7}  {rate:9.1f}  {rate / count / one:10.3f}")


if __name__ == "__main__":
    main()
