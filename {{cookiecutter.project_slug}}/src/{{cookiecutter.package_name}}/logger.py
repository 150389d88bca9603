"""metrics.csv, which goes on where it was when the run goes on."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class MetricsCSV(CSVLogger):
    """Lightning's CSVLogger, without its own folder, and without deleting what stands there."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="")

    @property
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _Continued(self.log_dir)
        return self._experiment

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: they stand in config.yaml."""


class _Continued(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        # Lightning's method of this name deletes the file.
        self.continues = Path(self.metrics_file_path).is_file()

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        super().log_metrics(metrics_dict, step)
        if self.continues:
            self.continues = False
            self._drop_from(int(self.metrics[-1]["step"]))

    def _drop_from(self, step: int) -> None:
        """Drop what was logged after the checkpoint that the run goes on from."""
        path = Path(self.metrics_file_path)
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            self.metrics_keys = list(rows.fieldnames or [])
            # A row that a kill has torn has no step.
            kept = [
                row for row in rows if (row["step"] or "").isdigit() and int(row["step"]) < step
            ]
        part = path.with_name(f"{path.name}.part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.metrics_keys)
            writer.writeheader()
            writer.writerows(kept)
        part.replace(path)
