"""How a checkpoint is written: whole or not at all, with the run's config, in plain data."""

import copy
import io
import logging
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule, LightningModule
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from omegaconf import OmegaConf

from ..errors import UserError
from ..files import checksum_matches, is_url, write_whole

log = logging.getLogger(__name__)

KINDS = (LightningModule, LightningDataModule)
HYPER_PARAMETERS = [kind.CHECKPOINT_HYPER_PARAMS_KEY for kind in KINDS]
HPARAMS_TYPES = [kind.CHECKPOINT_HYPER_PARAMS_TYPE for kind in KINDS]  # a class, of OmegaConf


class CheckpointIO(TorchCheckpointIO):
    """Lightning's, with whole files, and a warning in place of an end when the disk is full.

    Weights without the optimizer, such as the best, are kept in memory until they can be written.
    Checkpoints to resume from are dropped instead: a newer one follows.

    Args:
        config: the run's, as plain data; every file gets it under the key `run`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.proven = False  # that what is written can be read
        self.left_out: dict[str, set[str]] = {}  # hyper-parameters, by where they stand
        self.unwritten: dict[Path, dict[str, Any]] = {}

    def complete(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Return what is written of `checkpoint`: with the config, and plain hyper-parameters."""
        rest = {key: value for key, value in checkpoint.items() if key not in HPARAMS_TYPES}
        plain = plain_numbers({**rest, "run": {"config": self.config}})
        for key in HYPER_PARAMETERS:
            if plain.get(key):
                plain[key] = self._plain_hparams(key, plain[key])
        return plain

    def _plain_hparams(self, key: str, hparams: Any) -> dict[str, Any]:
        """Return the hyper-parameters without those that are objects, such as a model."""
        plain = {
            name: OmegaConf.to_container(value, resolve=True)
            if OmegaConf.is_config(value)
            else value
            for name, value in hparams.items()
        }
        if key not in self.left_out:
            names = {name for name, value in plain.items() if not _can_be_read_again(value)}
            self.left_out[key] = names
            if names:
                log.warning(
                    f"{key}: {', '.join(sorted(names))} cannot be in a checkpoint. Give them to"
                    " load_from_checkpoint, or leave them out: save_hyperparameters(ignore=[...])."
                )
        return {name: value for name, value in plain.items() if name not in self.left_out[key]}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        checkpoint = self.complete(checkpoint)
        if is_url(str(path)):  # a user's own ModelCheckpoint(dirpath="s3://...")
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        weights_only = "optimizer_states" not in checkpoint
        self.unwritten.pop(Path(path), None)
        for earlier in list(self.unwritten):
            # Write held-back files first: the new checkpoint's callback states name them.
            if not self._write(self.unwritten[earlier], earlier):
                if weights_only:
                    self.unwritten[Path(path)] = copy.deepcopy(checkpoint)
                return
            del self.unwritten[earlier]
        if not self._write(checkpoint, Path(path)) and weights_only:
            self.unwritten[Path(path)] = copy.deepcopy(checkpoint)

    def _write(self, checkpoint: dict[str, Any], path: Path) -> bool:
        try:
            write_whole(path, lambda file: torch.save(checkpoint, file))
        except OSError as error:
            log.warning(f"{path} cannot be written, training continues: {error}")
            return False
        if not self.proven:
            _prove(path)
            self.proven = True
        return True

    def flush(self) -> None:
        """Write what could not be written before.

        Raises:
            UserError: the disk is still full.
        """
        for path in list(self.unwritten):
            if not self._write(self.unwritten.pop(path), path):
                raise UserError(f"{path} cannot be written. Free some space, and train again.")

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if is_url(str(path)):
            return super().load_checkpoint(path, *args, **kwargs)
        if Path(path).is_dir():
            raise UserError(
                f"{path} is of a run with trainer=fsdp on several devices. Use the same again, or"
                f" start from its weights: init_from={path}."
            )
        if Path(path).exists() and not checksum_matches(Path(path)):
            raise UserError(f"{path} is broken. Add resume=never, or use another checkpoint.")
        return super().load_checkpoint(path, *args, **kwargs)


def plain_numbers(value: Any) -> Any:
    """Return `value` with Python's numbers in place of NumPy's, which no checkpoint may hold.

    They come from `LambdaLR(optimizer, lambda step: np.cos(...))`, and the like.
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is OrderedDict:  # of a module, with attributes of its own
        value = copy.copy(value)
        value.update({key: plain_numbers(one) for key, one in value.items()})
        return value
    if type(value) is dict:
        return {plain_numbers(key): plain_numbers(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain_numbers, value))
    return value


def _prove(path: Path) -> None:
    """Refuse at the first checkpoint what would otherwise be found out when one is needed."""
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = re.search(r"Unsupported \w+: (.*?) was not", str(error))
        raise UserError(
            f"A checkpoint of this run could not be read again ({reason[1] if reason else error}):"
            " hyper-parameters and states must be tensors and plain Python data."
        ) from error


def _can_be_read_again(value: Any) -> bool:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except Exception:  # pickle and torch have many kinds
        return False
    return True
