"""An axis of parallel coordinates, for numbers and for words."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

FEW = 6  # values that are all named
SPREAD = 30  # from a largest to a smallest number that are shown by their logarithm


class Scale:
    """Where a value stands on its axis, from 0 to 1: few values and words in equal distances."""

    def __init__(self, texts: Sequence[str]) -> None:
        try:
            distinct = sorted({float(text) for text in texts})
        except ValueError:
            distinct = []
        words = sorted(set(texts), key=float) if distinct else sorted(set(texts))
        self.places: dict[str, float] = {}
        if not distinct or len(words) <= FEW:
            self.places = dict(zip(words, np.linspace(0, 1, len(words) + 2)[1:-1], strict=True))
            self.ticks = [(place, word) for word, place in self.places.items()]
            return
        self.is_log = distinct[0] > 0 and distinct[-1] / distinct[0] > SPREAD
        self.low, self.high = (self._moved(end) for end in (distinct[0], distinct[-1]))
        locator = LogLocator(subs=(1, 3)) if self.is_log else MaxNLocator(4)
        inside = locator.tick_values(distinct[0], distinct[-1])
        between = [tick for tick in inside if distinct[0] < tick < distinct[-1]]
        ends = [(0.0, f"{distinct[0]:g}"), (1.0, f"{distinct[-1]:g}")]
        ticks = [(self._height(tick), f"{tick:g}") for tick in between]
        self.ticks = ends + [tick for tick in ticks if 0.07 < tick[0] < 0.93]

    def height(self, text: str) -> float:
        return self.places[text] if self.places else self._height(float(text))

    def _height(self, value: float) -> float:
        return (self._moved(value) - self.low) / (self.high - self.low)

    def _moved(self, value: float) -> float:
        return math.log(value) if self.is_log else value
