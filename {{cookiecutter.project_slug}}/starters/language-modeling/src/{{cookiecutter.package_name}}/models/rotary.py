"""Rotary positions: what a query finds in a key depends on how far apart they are, not on where.

https://arxiv.org/abs/2104.09864
"""

import torch
from torch import Tensor

Turns = tuple[Tensor, Tensor]  # cosines and sines of each position's angles (time, width / 2)


def turns_at(positions: Tensor, width: int) -> Turns:
    """How far each pair of features turns at each position: the later pairs turn more slowly."""
    speeds = 10_000 ** (-torch.arange(0, width, 2, device=positions.device) / width)
    angles = positions[:, None] * speeds
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turns: Turns) -> Tensor:
    """Queries or keys (..., time, width). Features of the first half pair with the second's."""
    (cosines, sines), (one, other) = turns, x.chunk(2, -1)
    pairs = (one * cosines - other * sines, one * sines + other * cosines)
    return torch.cat(pairs, -1).type_as(x)
