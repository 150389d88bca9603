"""Each case for real, on the device that is here: does it run, fail or stall as the corpus says?

python real.py cpu                   a table, and exit status 1 if the corpus is wrong somewhere
python real.py cuda --json out.json  the same on a GPU; needs torch, lightning, torchmetrics, numpy
python real.py cpu --only SmallCNN TinyGPT
"""

import argparse
import contextlib
import io
import json
import logging
import pickle
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import TracebackType
from typing import Any

import lightning as L
import torch
from cases import CASES, Case, Expected, load_all, place_of_fault
from torch.utils.data import DataLoader

HERE = Path(__file__).parent
STEPS = {"validation_step": "validate", "test_step": "test", "predict_step": "predict"}


def run(case: Case, accelerator: str) -> dict[str, Any]:
    """Train two batches, validate, test and predict one, save and load, pickle what workers get."""
    waits: list[int] = []
    outcome: dict[str, Any] = {"ran": True, "error": "", "line": None, "waits": waits}
    torch.manual_seed(0)
    if accelerator == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with quiet(), watched(accelerator, waits), limited(accelerator, case.memory):
        try:
            task, data = case(), case.data()
            outcome["pickles"] = why_not_pickled(data)
            trainer = a_trainer(case, accelerator)
            train(trainer, task, data)
            outcome["loads"] = why_not_loaded(trainer, task)
            if accelerator == "cuda":
                outcome["peak"] = torch.cuda.max_memory_allocated()
        except Exception as error:
            outcome["ran"] = False
            outcome["error"] = f"{type(error).__name__}: {error}"[:300]
            outcome["line"] = innermost_line(error.__traceback__)
        finally:
            if torch.distributed.is_initialized():  # what one case starts is no other's
                torch.distributed.destroy_process_group()
    return outcome


def a_trainer(case: Case, accelerator: str) -> L.Trainer:
    return L.Trainer(
        accelerator=accelerator,
        **{"devices": 1, **case.settings},
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=1,
        limit_test_batches=1,
        limit_predict_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def train(trainer: L.Trainer, task: L.LightningModule, data: Any) -> None:
    """All stages that the task has, as a user's program runs them."""
    has = {
        step for step in STEPS if getattr(type(task), step) is not getattr(L.LightningModule, step)
    }
    if isinstance(data, L.LightningDataModule):
        trainer.fit(task, datamodule=data)
        if "validation_step" in has:
            trainer.validate(task, datamodule=data, verbose=False)
        return
    trainer.fit(task, data, data if "validation_step" in has else None)
    for step in sorted(has):
        verbose = {} if step == "predict_step" else {"verbose": False}
        getattr(trainer, STEPS[step])(task, data, **verbose)


def loaders(data: Any) -> list[DataLoader[Any]]:
    if isinstance(data, DataLoader):
        return [data]
    data.setup("fit")
    found: list[DataLoader[Any]] = []
    for name in ("train_dataloader", "val_dataloader"):
        if getattr(type(data), name) is getattr(L.LightningDataModule, name):
            continue
        given = getattr(data, name)()
        given = list(given.values()) if isinstance(given, dict) else given
        found += given if isinstance(given, list) else [given]
    return found


def why_not_pickled(data: Any) -> str:
    """What a spawned worker is given, by the pickler that gives it."""
    for loader in loaders(data):
        for part in (loader.dataset, loader.collate_fn, loader.worker_init_fn):
            try:
                pickle.loads(bytes(ForkingPickler.dumps(part)))
            except Exception as error:
                return f"{type(error).__name__}: {error}"[:200]
    return ""


def why_not_loaded(trainer: L.Trainer, task: L.LightningModule) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "last.ckpt")
        try:
            trainer.save_checkpoint(path)
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:200]
    compiled = [key for key in checkpoint["state_dict"] if "_orig_mod" in key]
    return f"{compiled[0]} is a key of a compiled module" if compiled else ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What the cases print, and what Lightning says of them, is not of interest."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def watched(accelerator: str, waits: list[int]) -> Iterator[None]:
    """Note each line of the corpus that makes the CPU wait for CUDA, and no library's own.

    The mode "error" would end the run at the first, which may be Lightning's copy of a batch.
    """
    if accelerator != "cuda":
        yield
        return

    def note(message: Any, *_: Any) -> None:
        if "called a synchronizing" in str(message):
            place = of_the_corpus()
            if place is not None and place not in waits:
                waits.append(place)

    warnings.filterwarnings("always", message=".*called a synchronizing")
    shown, warnings.showwarning = warnings.showwarning, note
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
        warnings.showwarning = shown


def of_the_corpus() -> int | None:
    """The line of a case that makes the CPU wait, unless a library between it and PyTorch does."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.parent == HERE and path.name != Path(__file__).name:
            return frame.lineno
        installed = {"site-packages", "dist-packages"} & set(path.parts)
        if installed and ("torch" not in path.parts or "optim" in path.parts):
            return None
    return None


@contextlib.contextmanager
def limited(accelerator: str, memory: str | None) -> Iterator[None]:
    """A GPU with that much memory."""
    if accelerator != "cuda" or memory is None:
        yield
        return
    wanted = float(memory.removesuffix("MB")) * 10**6
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(wanted / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def innermost_line(trace: TracebackType | None) -> int | None:
    lines = [
        f.lineno
        for f in traceback.extract_tb(trace)
        if Path(f.filename).parent == HERE and f.filename != __file__
    ]
    return lines[-1] if lines else None


def wrong(case: Case, accelerator: str, outcome: dict[str, Any]) -> str:
    """In what the outcome is not what the corpus says; empty where it is."""
    expected: Expected = case.expected
    place = place_of_fault(case)
    lines = place[1] if place else range(0)
    harm = expected.real if accelerator == "cuda" else ""
    if harm == "fails":
        if outcome["ran"]:
            return "it ran"
        at_its_line = expected.line is not True or expected.backward or outcome["line"] in lines
        return "" if at_its_line else f"it failed at line {outcome['line']} and not {lines}"
    if not outcome["ran"]:
        return f"it failed: {outcome['error']}"
    waits = set(outcome["waits"])
    if harm == "stalls":
        if not waits or not waits <= set(lines):
            return f"it waited at {outcome['waits']} and not at {lines}"
    elif waits and expected.severities.get("cuda") not in ("any", "may warn"):
        return f"it waited at {outcome['waits']}"
    if expected.severities.get("cpu") != "any":
        for kind, key in (("workers", "pickles"), ("checkpoint", "loads")):
            if (expected.kind == kind) != bool(outcome[key]):
                return outcome[key] or f"it {key}"
    return ""


def runs_on(case: Case, accelerator: str) -> bool:
    if accelerator == "cpu":
        return case.expected.on_cpu
    return case.settings.get("devices", 1) == 1 and case.settings.get("strategy") != "fsdp"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("accelerator", choices=("cpu", "cuda", "mps"))
    parser.add_argument("--only", nargs="+", help="these cases")
    parser.add_argument("--json", type=Path, help="write all outcomes there")
    options = parser.parse_args()
    load_all()
    outcomes: dict[str, Any] = {}
    for name in options.only or CASES:
        case = CASES[name]
        if runs_on(case, options.accelerator):
            outcome = run(case, options.accelerator)
            outcome["kind"] = case.expected.kind
            outcome["wrong"] = wrong(case, options.accelerator, outcome)
            outcomes[name] = outcome
    bad = {name: outcome for name, outcome in outcomes.items() if outcome["wrong"]}
    for name, outcome in bad.items():
        print(f"{name} ({outcome['kind'] or 'sound'}): {outcome['wrong']}")
    sound = sum(not outcome["kind"] for outcome in outcomes.values())
    print(
        f"{options.accelerator}: {sound} sound, {len(outcomes) - sound} planted;"
        f" {len(bad)} are not as the corpus says; PyTorch {torch.__version__}"
    )
    if options.json:
        options.json.write_text(json.dumps(outcomes, indent=2) + "\n", encoding="utf-8")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
