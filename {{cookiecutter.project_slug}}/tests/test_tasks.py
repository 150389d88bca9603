"""A task is plain Lightning: it trains without the engine of this project."""

import json
import subprocess
import sys

from conftest import EXPERIMENTS, chosen, compose_config, settled, why_not
from omegaconf import OmegaConf

import {{ cookiecutter.package_name }} as package

WITHOUT_ENGINE = """
import importlib.abc, json, sys, warnings
import lightning as L
from hydra.utils import instantiate

package = sys.argv[1]
allowed = [f"{package}.engine.{name}" for name in ("errors", "files")]

class NoEngine(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith(f"{package}.engine.") and name not in allowed:
            raise ImportError(f"{name} belongs to the engine")

sys.meta_path.insert(0, NoEngine())
warnings.simplefilter("ignore")
for experiment, cfg in json.load(sys.stdin).items():
    task, data = (instantiate(cfg[part], _convert_="partial") for part in ("task", "data"))
    trainer = L.Trainer(fast_dev_run=True, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(task, data)
    assert trainer.global_step, experiment
"""


def test_every_task_trains_by_lightning_alone() -> None:
    here = [name for name in EXPERIMENTS if not why_not(name)]
    configs = {name: settled(compose_config("train", *chosen(name))) for name in here}
    plain = {name: OmegaConf.to_container(cfg, resolve=True) for name, cfg in configs.items()}
    command = [sys.executable, "-c", WITHOUT_ENGINE, package.__name__]
    given = json.dumps(plain)
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
