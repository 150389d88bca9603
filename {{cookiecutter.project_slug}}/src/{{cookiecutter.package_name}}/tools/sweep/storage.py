"""The database of a search, in the sweep's folder."""

from pathlib import Path

from optuna.storages import RDBStorage

STUDY = "sweep"  # the name of the study in it
PRUNER = "pruner.json"  # beside it
PATIENCE = 60  # seconds to wait while another process writes


def storage(folder: Path) -> RDBStorage:
    return RDBStorage(
        f"sqlite:///{(folder / 'study.db').as_posix()}",
        engine_kwargs={"connect_args": {"timeout": PATIENCE}},
    )
