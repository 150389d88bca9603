"""A global batch is the same samples on one device and on several."""

import itertools

import pytest
import torch
from image_project.engine.resume.loaders import RankShare
from torch.utils.data import RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler


def shares(size: int, ranks: int, *, shuffle: bool, drop_last: bool) -> list[list[int]]:
    """What each rank gets of `size` samples, drawn with one seed."""
    drawn = []
    for rank in range(ranks):
        torch.manual_seed(7)
        sampler = DistributedSampler(range(size), ranks, rank, shuffle, drop_last=drop_last)
        drawn.append(list(RankShare(sampler)))
        assert len(drawn[-1]) == len(RankShare(sampler))
    return drawn


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_ranks_share_the_order_of_one_device(ranks: int, shuffle: bool) -> None:
    torch.manual_seed(7)
    one = list(RandomSampler(range(25)) if shuffle else SequentialSampler(range(25)))
    parts = shares(25, ranks, shuffle=shuffle, drop_last=True)
    together = list(itertools.chain.from_iterable(zip(*parts, strict=True)))
    assert together == one[: 25 // ranks * ranks]


def test_every_rank_has_as_many_samples_where_none_is_left_out() -> None:
    parts = shares(25, 4, shuffle=True, drop_last=False)
    assert [len(part) for part in parts] == [7] * 4
    assert set(itertools.chain.from_iterable(parts)) == set(range(25))
