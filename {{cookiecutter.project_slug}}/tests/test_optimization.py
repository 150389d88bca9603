"""Fused where PyTorch can, if the config does not say; clipped to the norm that is asked for."""

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Compose
from lightning import Callback, Trainer
from omegaconf import OmegaConf, open_dict
from torch import nn

from {{ cookiecutter.package_name }} import optimization
from {{ cookiecutter.package_name }}.run import Run
from {{ cookiecutter.package_name }}.train import train

SMALL = (
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
)


def parameters(**kind: Any) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3, **kind)), nn.Parameter(torch.ones(2, 2, **kind))]


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_what_pytorch_can_fuse_is_fused(optimizer: Any) -> None:
    built = optimization.build(partial(optimizer, lr=0.1), parameters())
    assert [group["fused"] for group in built.param_groups] == [True]


def test_each_group_of_parameters_is_fused_and_keeps_its_own_values() -> None:
    first, second = parameters()
    groups = [{"params": [first]}, {"params": [second], "weight_decay": 0.5}]
    built = optimization.build(partial(torch.optim.AdamW, lr=0.1, weight_decay=0.2), groups)
    assert [group["fused"] for group in built.param_groups] == [True, True]
    assert [group["weight_decay"] for group in built.param_groups] == [0.2, 0.5]


@pytest.mark.parametrize("asked", [{"fused": False}, {"foreach": True}, {"differentiable": True}])
def test_the_config_decides_before_the_policy(asked: dict[str, bool]) -> None:
    built = optimization.build(partial(torch.optim.AdamW, **asked), parameters())
    assert not built.param_groups[0]["fused"]


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        (torch.optim.RMSprop, {}),  # has no such kernel
        (torch.optim.Adam, {"dtype": torch.complex64}),
        (torch.optim.SGD, {"device": "meta"}),
    ],
)
def test_what_cannot_be_fused_is_built_as_it_is(optimizer: Any, kind: dict[str, Any]) -> None:
    built = optimization.build(partial(optimizer, lr=0.1), parameters(**kind))
    assert not built.param_groups[0].get("fused")


@pytest.mark.parametrize(("saved", "here"), [(True, False), (False, True)])
def test_the_state_of_a_fused_optimizer_goes_on_without_and_the_other_way(
    saved: bool, here: bool
) -> None:
    def stepped(optimizer: torch.optim.Optimizer, times: int) -> list[torch.Tensor]:
        weights = optimizer.param_groups[0]["params"]
        for _ in range(times):
            for weight in weights:
                weight.grad = weight.detach() * 2
            optimizer.step()
        return [weight.detach() for weight in weights]

    there = optimization.build(partial(torch.optim.AdamW, lr=0.1, fused=saved), parameters())
    reached = stepped(there, 3)
    own = [nn.Parameter(weight.clone()) for weight in reached]
    built = optimization.build(partial(torch.optim.AdamW, lr=0.1, fused=here), own)
    built.load_state_dict(copy.deepcopy(there.state_dict()))
    assert [group["fused"] for group in built.param_groups] == [here]
    torch.testing.assert_close(stepped(built, 3), stepped(there, 3))


def test_whether_it_is_fused_is_no_part_of_a_runs_identity(
    config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(*SMALL, "scheduler=constant")
    fused = Run.of(cfg).folder
    train(cfg)
    monkeypatch.setattr(optimization, "_has", lambda *_: False)  # as on a device without
    longer = config(*SMALL, "scheduler=constant", "trainer.max_epochs=2")
    assert Run.of(longer).folder == fused
    train(longer)  # goes on where the other one was
    state = torch.load(Run(fused).checkpoints()[0], weights_only=True)["optimizer_states"][0]
    assert state["param_groups"][0]["fused"] is None
    assert {int(one["step"]) for one in state["state"].values()} == {6}


class Norms(Callback):
    """The norm of the gradients before they are clipped, and of those that the step takes."""

    before: list[float]
    after: list[float]

    def on_train_start(self, trainer: Trainer, task: Any) -> None:
        Norms.before, Norms.after = [], []

    def on_before_optimizer_step(self, trainer: Trainer, task: Any, optimizer: Any) -> None:
        Norms.before.append(norm(task))

    def on_before_zero_grad(self, trainer: Trainer, task: Any, optimizer: Any) -> None:
        if trainer.global_step:
            Norms.after.append(norm(task))


def norm(task: Any) -> float:
    return float(torch.nn.utils.get_total_norm([p.grad for p in task.parameters()]))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("fused", ["true", "false"])
def test_gradients_are_clipped_to_the_norm_that_is_asked_for(
    config: Compose, accelerator: str, precision: str, fused: str
) -> None:
    cfg = config(
        *SMALL,
        f"trainer.accelerator={accelerator}",
        f"trainer.precision={precision}",
        f"+optimizer.fused={fused}",
        "trainer.gradient_clip_val=0.01",
    )
    with open_dict(cfg):
        cfg.callbacks.norms = OmegaConf.create({"_target_": f"{__name__}.Norms"})
    train(cfg)
    assert min(Norms.before) > 0.1
    assert Norms.after == pytest.approx([0.01] * 2, rel=1e-3)


@pytest.mark.parametrize("divides_itself", [True, False])
def test_with_a_loss_scale_the_true_gradients_are_clipped(divides_itself: bool) -> None:
    """As float16 on a GPU, with a scaler that works anywhere."""
    weight = nn.Parameter(torch.zeros(2))
    optimizer = optimization.build(partial(torch.optim.SGD, fused=divides_itself), [weight])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    precision = optimization.MixedPrecision("16-mixed", "cuda", scaler)
    task: Any = SimpleNamespace(trainer=SimpleNamespace(precision_plugin=precision))
    task.clip_gradients = lambda *args: precision.clip_gradients(*args)
    scaler.scale((weight * torch.tensor([3.0, 4.0])).sum()).backward()  # a norm of 5
    if not divides_itself:  # Lightning has done it before
        scaler.unscale_(optimizer)
    optimization.clip(task, optimizer, 1.0, "norm")
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]))
    scaler.step(optimizer)
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]) * 1e-3)
