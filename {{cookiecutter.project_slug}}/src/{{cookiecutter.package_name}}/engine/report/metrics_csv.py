"""metrics.csv: every logged row, which a resumed run continues at the row of its checkpoint."""

import csv
import io
import logging
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from ..files import write_whole

log = logging.getLogger(__name__)

WRITE_SECONDS = 1.0  # at least between two writes: a write takes as long as a small step


class MetricsCSV(Logger):
    """Writes metrics.csv into `folder`.

    Lightning's CSVLogger would do, but it deletes what stands there, and cannot take rows back.
    """

    name, version = "", ""  # so that Lightning puts into `save_dir` what belongs to a run

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.columns: list[str] = []
        self.pending: list[dict[str, Any]] = []  # rows that are not on disk yet
        self.written, self.size = 0, 0  # rows on disk, and the bytes they take
        self.written_at = 0.0
        self.warned = False

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    log_dir = root_dir = save_dir  # where a task may put files, as with Lightning's CSVLogger

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        row = {k: v.item() if isinstance(v, Tensor) else v for k, v in metrics.items()}
        self.pending.append({"step": step, **row})
        if time.monotonic() - self.written_at >= WRITE_SECONDS:
            self._write_pending()

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: they stand in config.yaml."""

    @rank_zero_only
    def save(self) -> None:
        self._write_pending()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._write_pending()

    @property
    def resume_rows(self) -> int:
        """Write all rows to the disk, so that they survive a power cut, and return their number."""
        self._write_pending()
        if self.written:
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
        return self.written

    @resume_rows.setter
    @rank_zero_only
    def resume_rows(self, rows: int) -> None:
        """Drop all but the first `rows`, which are newer than a checkpoint."""
        self.pending = []
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                there = csv.DictReader(file)
                self._rewrite(list(there.fieldnames or []), list(there)[:rows])

    def _write_pending(self) -> None:
        if not self.pending:
            return
        new = [key for row in self.pending for key in row if key not in self.columns]
        try:
            if new:
                self._rewrite(sorted({*self.columns, *new}), self._read() + self.pending)
            else:
                with self.path.open("a", newline="", encoding="utf-8") as file:
                    file.truncate(self.size)  # a write that failed may have left a part of a row
                    csv.DictWriter(file, self.columns).writerows(self.pending)
                self.written, self.size = self.written + len(self.pending), self._size()
        except OSError as error:  # the rows are kept, and written with the next ones
            if not self.warned:
                log.warning(f"{self.path} cannot be written, training continues: {error}")
            self.warned = True
            return
        self.pending, self.warned, self.written_at = [], False, time.monotonic()

    def _read(self) -> list[dict[str, Any]]:
        if not self.written:
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))[: self.written]

    def _rewrite(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path, lambda file: file.write(text.getvalue().encode()))
        # Only now: on a full disk the file still has its former columns.
        self.columns, self.written, self.size = columns, len(rows), self._size()

    def _size(self) -> int:
        return self.path.stat().st_size
