"""The config and the policy: what the config requests, and the config with the answers in it."""

from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf

from .. import ROOT
from ..errors import UserError
from .policy import Requested, Settings

TRAINER = ("accelerator", "devices", "strategy", "precision")
LOADER = ("num_workers", "pin_memory", "persistent_workers")


def requested(cfg: DictConfig) -> Requested:
    """What `cfg` asks for. A datamodule of yours need not have the loader's settings."""
    return Requested(
        **{key: cfg.trainer[key] for key in TRAINER},
        **{key: cfg.data[key] for key in LOADER if key in (cfg.get("data") or {})},
        matmul_precision=cfg.matmul_precision,
        require_accelerator=cfg.require_accelerator,
        compile=cfg.compile if "compile" in cfg else False,  # only what trains is compiled
    )


def apply(cfg: DictConfig, choice: Settings) -> DictConfig:
    """A copy of `cfg` with the answer in place of every `auto`, and its reasons under `device`."""
    answer = asdict(choice)
    answer["strategy"] = _strategy_config(cfg, choice)
    if cfg.trainer.get("sync_batchnorm") and choice.world_size > 1 and choice.accelerator == "cpu":
        raise UserError("trainer.sync_batchnorm=true needs CUDA: leave it out on the CPU.")
    data = cfg.get("data") or {}  # none, where a task has its own loaders
    settled = OmegaConf.merge(
        OmegaConf.create(OmegaConf.to_container(cfg)),  # without Hydra's guard against new keys
        {
            "trainer": {key: answer[key] for key in (*TRAINER, "num_nodes")},
            "data": {key: answer[key] for key in LOADER if key in data} if data else None,
            "matmul_precision": choice.matmul_precision,
            "device": {"name": choice.name, "reasons": choice.reasons},
        },
    )
    assert isinstance(settled, DictConfig)
    if "global_batch_size" in data:
        del settled.data.global_batch_size  # the datamodule gets batch_size only
        settled.data.batch_size = batch_size(cfg, choice)
    return settled


def _strategy_config(cfg: DictConfig, choice: Settings) -> Any:
    """Return the strategy as the Trainer takes it: a name, or a config with a `_target_`."""
    if choice.strategy == "fsdp":  # FSDP2; Lightning's own `fsdp` is its predecessor
        strategy = f"{ROOT}.engine.parallel.fsdp.ShardedStrategy"
        return {"_target_": strategy, "data_parallel_size": choice.world_size}
    exact = choice.accelerator == "cpu" or cfg.trainer.get("deterministic")
    if choice.strategy == "ddp" and exact and choice.world_size > 2:
        # This option keeps DDP from reordering its gradient buckets after the first step of every
        # start. With more than two ranks another order gives other bits, also after a resume.
        strategy = "lightning.pytorch.strategies.DDPStrategy"
        return {"_target_": strategy, "find_unused_parameters": True}
    return choice.strategy


def batch_size(cfg: DictConfig, choice: Settings) -> int:
    """Return the batch size of one device: data.batch_size, or a share of global_batch_size.

    Raises:
        UserError: it cannot be split.
    """
    whole = cfg.data.global_batch_size if "global_batch_size" in cfg.data else None
    if whole is None:
        return int(cfg.data.batch_size)
    parts = choice.world_size * cfg.trainer.get("accumulate_grad_batches", 1)
    if whole < 1 or whole % parts:
        below = max(1, whole // parts) * parts
        raise UserError(
            f"data.global_batch_size={whole} cannot be split over {_devices_of(choice)} and"
            f" trainer.accumulate_grad_batches={parts // choice.world_size}: use {below} or"
            f" {below + parts}."
        )
    return int(whole // parts)


def _devices_of(choice: Settings) -> str:
    return f"{choice.world_size} device{'s' if choice.world_size > 1 else ''}"


def line(choice: Settings, cfg: DictConfig) -> str:
    """Return the first line that a run prints."""
    said = f"{choice.accelerator} ({choice.name}), {choice.precision}, {_devices_of(choice)}"
    if choice.num_nodes > 1:
        said += f" on {choice.num_nodes} hosts"
    if "batch_size" in (cfg.get("data") or {}):
        each, accumulated = batch_size(cfg, choice), cfg.trainer.get("accumulate_grad_batches", 1)
        said += f", effective batch size {each * choice.world_size * accumulated}"
    return f"{said}: {choice.reasons['accelerator']}"
