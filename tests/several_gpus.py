"""On a machine with two GPUs or more: a process of a run is killed, the same bits; DDP and FSDP2.

    python tests/several_gpus.py FOLDER PACKAGE [OVERRIDE ...]
    python tests/several_gpus.py FOLDER PACKAGE trainer.accelerator=cpu    # to try it out

PACKAGE is that of a generated project with either starter, which can be imported. For each strategy a
run is left alone, and others are killed or stopped, once with torchrun's restart and once with the
same command given again. Prints a line of JSON for each; `exact` must be true in all of them. bf16 and
deterministic algorithms: without these a GPU gives other bits each time.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SMALL = (
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=12",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=1.0",
    "trainer.deterministic=true",
    "trainer.precision=bf16-mixed",
    "save.every_n_steps=3",
)
DISTURBED = ("sigkill", 1, 3), ("sigkill", 0, 3), ("sigterm", 1, 0), ("sigterm_to_torchrun", 0, 0)
PROCESSES = os.environ.get("PROCESSES", "2")


def give(folder: Path, *program: str, restarts: int = 0) -> tuple[int, float, str]:
    """Exit status, seconds and output of a command that torchrun starts."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    options = (f"--nproc-per-node={PROCESSES}", f"--max-restarts={restarts}")
    started = time.monotonic()
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # what PyTorch asks for
    done = subprocess.run(
        [*torchrun, *options, *program],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, time.monotonic() - started, done.stdout


def result(folder: Path) -> dict[str, str]:
    """Hashes of everything in the newest checkpoint, of the best weights, and of the metrics."""
    (run,) = (folder / "runs").iterdir()
    newest = sorted(run.glob("checkpoints/step_*.ckpt"))[-1]
    hashed = {
        "newest": digest(newest),
        "last": digest(run / "checkpoints" / "last.ckpt"),
        "best": digest(run / "checkpoints" / "best.ckpt"),
        "rows": hashlib.sha256((run / "metrics.csv").read_bytes()).hexdigest(),
        "metrics": (run / "metrics.json").read_text(),
    }
    return hashed


def digest(checkpoint: Path) -> str:
    """Of weights and optimizer; the parts of a folder are put together by PyTorch's own tool."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.TemporaryDirectory() as temporary:
        if checkpoint.is_dir():
            whole = Path(temporary) / "whole.pt"
            dcp_to_torch_save(checkpoint, whole)
            checkpoint = whole
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    sha = hashlib.sha256()
    for name, value in leaves(state):
        if name.startswith((".state_dict", ".optimizer")):
            content = value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value)
            sha.update(
                name.encode() + (content if isinstance(content, bytes) else content.encode())
            )
    return sha.hexdigest()


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from leaves(part, f"{name}.{index}")
    else:
        yield name, value


def main() -> None:
    where, package, *overrides = sys.argv[1:]
    script, wrong = str(Path(__file__).with_name("one_of_many.py")), 0
    for strategy in ("ddp", "fsdp"):
        options = (*SMALL, *overrides, f"trainer.strategy={strategy}")
        train = ("-m", f"{package}.train", *options)
        undisturbed = Path(where).absolute() / strategy / "undisturbed"
        undisturbed.mkdir(parents=True)
        status, seconds, said = give(undisturbed, *train)
        if status:
            sys.exit(said[-6000:])
        wanted = result(undisturbed)
        print(json.dumps({"strategy": strategy, "seconds": round(seconds, 1)}), flush=True)
        for fault, rank, restarts in DISTURBED:
            folder = undisturbed.with_name(f"{fault}_{rank}")
            folder.mkdir()
            fault_of = (package, fault, str(rank), "training_step", "17")
            status, _, said = give(folder, script, *fault_of, *options, restarts=restarts)
            after = time.time() - float((folder / "disturbed").read_text())
            line = {"strategy": strategy, "fault": fault, "rank": rank, "status": status}
            if not restarts:
                line["seconds_to_end"] = round(after, 1)
                again, _, said = give(folder, *train)
                line["again"] = again
            try:
                line["exact"] = result(folder) == wanted
            except (OSError, IndexError):
                line["exact"] = False
            wrong += not line["exact"]
            print(json.dumps(line), flush=True)
            if not line["exact"]:
                print(said[-3000:], flush=True)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
