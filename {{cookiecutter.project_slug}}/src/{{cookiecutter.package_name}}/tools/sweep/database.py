"""Where a study of Optuna stands: a database in the sweep's folder, which outlives every kill."""

from pathlib import Path

from optuna.storages import RDBStorage

NAME = "sweep"  # of the study in it
PRUNER = "pruner.json"  # beside it
PATIENCE = 60  # seconds, while another process writes


def storage(folder: Path) -> RDBStorage:
    return RDBStorage(
        f"sqlite:///{(folder / 'study.db').as_posix()}",
        engine_kwargs={"connect_args": {"timeout": PATIENCE}},
    )
