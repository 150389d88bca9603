"""The lean loop does what Lightning's own does: the same calls, the same bits, the same records."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, starter
from lightning import Callback, Trainer
from omegaconf import OmegaConf, open_dict

from {{ cookiecutter.package_name }}.lean import LeanLoop
from {{ cookiecutter.package_name }}.run import Run
from {{ cookiecutter.package_name }}.train import train

SMALL = (
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=6",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=1",
    "trainer.log_every_n_steps=2",
)
HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_train_epoch_end",
)


class Witness(Callback):
    """Notes what it is called for, and what the trainer says at that time."""

    notes: list[Any]
    lean: bool

    def setup(self, trainer: Trainer, task: Any, stage: str) -> None:
        if stage == "fit":
            Witness.notes = []
        for hook in HOOKS:
            setattr(self, hook, lambda *args, hook=hook: self.note(hook, *args))

    def note(self, hook: str, trainer: Trainer, task: Any, *given: Any) -> None:
        Witness.lean = trainer.fit_loop.epoch_loop.hooks is not None  # type: ignore[attr-defined]
        values = [x.detach().sum().item() for x in given if isinstance(x, torch.Tensor)]
        if given and isinstance(given[0], dict):  # what the step has returned
            values += [(key, float(value)) for key, value in given[0].items()]
        gradients = [p.grad is not None and p.grad.sum().item() for p in task.parameters()]
        Witness.notes.append(
            (
                hook,
                task._current_fx_name,
                trainer.global_step,
                trainer.is_last_batch,
                [type(x).__name__ for x in given],
                values,
                gradients,
                {name: float(value) for name, value in trainer.callback_metrics.items()},
            )
        )


class TalkingTask(starter.Task):
    """Logs in every way and at every place, and returns more than a loss."""

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("train/each", loss, prog_bar=True)
        self.log("train/both", loss, on_step=True, on_epoch=True)
        if batch_idx % 2:
            self.log("train/odd", loss)
        return {"loss": loss, "extra": loss.detach() * 2}

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> Any:
        super().validation_step(batch, batch_idx)
        self.log("val/each", batch[0].float().mean(), on_step=True, on_epoch=True)
        if batch_idx == 0:
            self.log("val/first", batch[0].float().max(), on_step=True)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.log("train/lr", optimizer.param_groups[0]["lr"], on_epoch=True)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("train/extra", outputs["extra"])


class SteppingTask(starter.Task):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)


class ManualTask(starter.Task):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()
        return loss


def everything(config: Compose, *overrides: str) -> dict[str, Any]:
    """What a run leaves, as text to the last digit."""
    cfg = config(*SMALL, "resume=never", "matmul_precision=highest", *overrides)
    with open_dict(cfg):
        cfg.callbacks.witness = OmegaConf.create({"_target_": f"{__name__}.Witness"})
    run = Run.of(cfg)
    metrics = train(cfg)
    saved = torch.load(run.newest(Path.is_file), weights_only=True)  # type: ignore[arg-type]
    del saved["hyper_parameters"], saved["callbacks"]  # they name the folder
    torch.set_printoptions(precision=20, threshold=10**6)
    try:
        return {
            "metrics": metrics,
            "saved": {key: str(value) for key, value in saved.items()},
            "rows": (run.folder / "metrics.csv").read_text(),
            "notes": Witness.notes,
        }
    finally:
        torch.set_printoptions(profile="default")


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("optimizer=sgd", "trainer.gradient_clip_val=0.1"),
        ("trainer.gradient_clip_val=0.01", "trainer.precision=bf16-mixed"),
        ("scheduler=one_cycle", "trainer.val_check_interval=0.5"),
        ("scheduler=plateau",),
        ("trainer.max_steps=9", *starter.RANDOM),
        ("trainer.max_steps=9", "~callbacks.best", "~callbacks.early_stopping", "monitor=none"),
        (f"task._target_={__name__}.TalkingTask",),
    ],
    ids=" ".join,
)
def test_it_leaves_what_lightnings_own_leaves(
    config: Compose, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    lean = everything(config, *overrides)
    assert Witness.lean
    monkeypatch.setattr(LeanLoop, "_is_usual", lambda *_: False)
    own = everything(config, *overrides)
    assert not Witness.lean
    assert len(lean["notes"]) > 50
    for part in own:
        assert lean[part] == own[part], part


@pytest.mark.parametrize(
    "override",
    [
        "trainer.accumulate_grad_batches=2",
        "trainer.profiler=simple",
        f"task._target_={__name__}.SteppingTask",
        f"task._target_={__name__}.ManualTask",
    ],
)
def test_what_it_does_not_know_runs_in_lightnings_own(config: Compose, override: str) -> None:
    everything(config, override, "trainer.gradient_clip_val=null")  # no clipping by hand
    assert not Witness.lean
