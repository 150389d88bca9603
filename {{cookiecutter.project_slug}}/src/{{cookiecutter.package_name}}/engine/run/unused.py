"""Find config groups (model, optimizer, scheduler) that nothing refers to."""

import re

from omegaconf import DictConfig, OmegaConf

GROUPS = ("model", "optimizer", "scheduler")
REFERRING = ("data", "task", "trainer", "callbacks", "show", "logger")


def unused_groups(cfg: DictConfig) -> list[str]:
    """Return the groups to which nothing that is built refers, as by `${model}`.

    Args:
        cfg: not resolved.
    """
    config = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(config, dict)
    there = [group for group in GROUPS if config.get(group)]
    text = str([config.get(group) for group in REFERRING])
    for _ in GROUPS:  # a scheduler may refer to the optimizer
        text += str([config[group] for group in there if _refers(text, group)])
    return [group for group in there if not _refers(text, group)]


def _refers(text: str, group: str) -> bool:
    return re.search(re.escape("${" + group) + r"\b", text) is not None
