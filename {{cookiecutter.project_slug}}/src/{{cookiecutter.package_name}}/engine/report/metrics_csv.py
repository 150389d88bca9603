"""metrics.csv, which goes on where it was when the run goes on."""

import contextlib
import csv
import io
import logging
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ..files import write_whole

log = logging.getLogger(__name__)

EVERY = 1.0  # seconds at least between two writes of rows


class MetricsCSV(CSVLogger):
    """Lightning's CSVLogger, without its own folder, and without deleting what stands there."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="")
        self.after_a_row, self.written = False, 0.0

    @property
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _Rows(self.log_dir)
        return self._experiment

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        self.after_a_row = True

    def save(self) -> None:
        # Lightning asks for it after every row, which would take as long as a small step.
        wait = self.after_a_row and time.monotonic() - self.written < EVERY
        self.after_a_row = False
        if not wait:
            super().save()
            self.written = time.monotonic()

    def finalize(self, status: str) -> None:
        self.after_a_row = False
        super().finalize(status)

    @property
    def rows(self) -> int:
        """How many are on the disk; set to fewer, the rest is dropped, newer than a checkpoint."""
        self.experiment.save()
        self.experiment.sync()
        return int(self.experiment.rows)

    @rows.setter
    @rank_zero_only
    def rows(self, rows: int) -> None:
        self.experiment.keep(rows)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: they stand in config.yaml."""


class _Rows(ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.path = Path(self.metrics_file_path)
        self.rows, self.size = 0, 0  # on disk; the size in bytes
        self.header: list[str] = []
        self.warned = False

    def _check_log_dir_exists(self) -> None:
        """Nothing: Lightning deletes the file here."""

    def keep(self, rows: int) -> None:
        """Go on after that many rows of the file, if it is there."""
        if not self.path.is_file():
            return
        with self.path.open(newline="", encoding="utf-8") as file:
            there = csv.DictReader(file)
            self.metrics_keys = list(there.fieldnames or [])
            self._write(list(there)[:rows])

    def save(self) -> None:
        new = self.metrics
        if not new:
            return
        try:
            self._record_new_keys()
            if self.metrics_keys != self.header:
                self._write(self._read() + new)
            else:
                with self.path.open("a", newline="", encoding="utf-8") as file:
                    file.truncate(self.size)  # a write that failed may have left a part of a row
                    csv.DictWriter(file, self.metrics_keys).writerows(new)
                    file.flush()
                self.rows, self.size = self.rows + len(new), self.path.stat().st_size
        except OSError as error:  # kept, and written with the next ones
            if not self.warned:
                log.warning(f"{self.path} cannot be written, training goes on: {error}")
            self.warned = True
            return
        self.metrics, self.warned = [], False

    def sync(self) -> None:
        with contextlib.suppress(OSError), self.path.open("rb+") as file:
            os.fsync(file.fileno())

    def _read(self) -> list[dict[str, Any]]:
        if not self.rows:
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))[: self.rows]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.metrics_keys)
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path, lambda file: file.write(text.getvalue().encode()))
        self.rows, self.size = len(rows), self.path.stat().st_size
        self.header = list(self.metrics_keys)
