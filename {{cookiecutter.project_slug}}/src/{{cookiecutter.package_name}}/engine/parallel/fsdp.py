"""Training in which each device has a part of the weights, gradients and optimizer: trainer=fsdp.

Checkpoints to resume from are folders with a part per process. best.ckpt is one ordinary file, so
that one device can use it.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard

from ..errors import UserError
from ..files import checksum_matches, commit_folder, write_whole
from .sharded_checkpoint import EXTRA_STATE, PlainPlanner, refuse_code

log = logging.getLogger(__name__)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with FSDP2 for any task.

    Its checkpoint folders are complete or absent.

    Args:
        data_parallel_size: devices on all hosts.
    """

    def __init__(self, data_parallel_size: int) -> None:
        super().__init__(data_parallel_size, tensor_parallel_size=1)

    def connect(self, model: LightningModule) -> None:
        """Shard the task, after its own `configure_model` if it has one.

        Lightning requires a sharding `configure_model`, so it is set on the instance.
        """
        super().connect(model)
        build = model.configure_model

        def configure_model() -> None:
            build()
            self._shard(model)

        model.configure_model = configure_model  # type: ignore[method-assign]

    def _shard(self, task: LightningModule) -> None:
        """Split each module's parameters over the devices, those in a ModuleList by themselves.

        Before a block computes, its weights are gathered, and afterwards they are freed.
        """
        mesh = self.device_mesh["data_parallel"]
        for model in task.children():
            if isinstance(model, FSDPModule) or not any(True for _ in model.parameters()):
                continue  # sharded by the task itself, or with nothing to shard
            lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
            for part in (*(block for blocks in lists for block in blocks), model):
                fully_shard(part, mesh=mesh)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        path = Path(filepath)
        if "optimizer_states" in checkpoint:
            self._save_parts(checkpoint, path)
            return
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        checkpoint["state_dict"] = get_model_state_dict(self._module, options=whole)
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path)

    def _save_parts(self, checkpoint: dict[str, Any], path: Path) -> None:
        files: Any = self.checkpoint_io  # ours, see resume/checkpoint_io.py
        checkpoint = files.complete(checkpoint)
        part = path.with_name(f"{path.name}.part")
        state = {"state_dict": checkpoint.pop("state_dict")}
        for number, optimizer in enumerate(checkpoint.pop("optimizer_states")):
            state[f"optimizer_{number}"] = optimizer
        buffers: list[Any] = [None] * self.world_size  # of batch norm: on each device its own
        dist.all_gather_object(buffers, {n: b.cpu() for n, b in self._module.named_buffers()})
        try:
            dcp.save(state, checkpoint_id=part)
            if self.is_global_zero:
                rest = {**checkpoint, "buffers": buffers}
                write_whole(part / EXTRA_STATE, lambda file: torch.save(rest, file))
                commit_folder(part, path)
        except (dcp.api.CheckpointException, OSError) as error:
            log.warning(f"{path} cannot be written, training goes on: {error}")
            if self.is_global_zero:
                shutil.rmtree(part, ignore_errors=True)
        self.barrier()

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        path, module = Path(checkpoint_path), self._module
        if not path.is_dir():
            if self.is_global_zero and not checksum_matches(path):
                raise UserError(f"{path} is broken: train with resume=never, or take another one.")
            if module.trainer.state.fn == TrainerFn.FITTING:
                return super().load_checkpoint(path, weights_only=True)
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            whole = StateDictOptions(full_state_dict=True)
            set_model_state_dict(module, checkpoint["state_dict"], options=whole)
            return dict(checkpoint)
        refuse_code(path)
        state: dict[str, Any] = {"state_dict": get_model_state_dict(module)}
        for number, optimizer in enumerate(self.optimizers):
            state[f"optimizer_{number}"] = get_optimizer_state_dict(module, optimizer)
        dcp.load(state, checkpoint_id=path, planner=PlainPlanner())
        set_model_state_dict(module, state["state_dict"])
        for number, optimizer in enumerate(self.optimizers):
            set_optimizer_state_dict(
                module, optimizer, optim_state_dict=state[f"optimizer_{number}"]
            )
        rest: dict[str, Any] = torch.load(path / EXTRA_STATE, map_location="cpu", weights_only=True)
        if len(rest["buffers"]) == self.world_size:
            for name, buffer in module.named_buffers():
                buffer.copy_(rest["buffers"][self.global_rank][name])
        return rest

    @property
    def _module(self) -> LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module
