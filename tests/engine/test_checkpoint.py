"""A checkpoint is plain data, and evaluate, predict and a notebook need nothing else."""

import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from image_project.data.digits import DigitsDataModule
from image_project.engine.errors import UserError
from image_project.engine.files import checksum_matches, commit_folder
from image_project.engine.resume import checkpoint as checkpoint_file
from image_project.engine.run import find, open_run, run_folder
from image_project.engine.trainer import build, load_run
from image_project.evaluate import evaluate
from image_project.predict import predict
from image_project.tasks.classification import ClassificationTask
from image_project.train import train
from torch.utils.data import DataLoader

from .small_runs import DEVICES, Compose, Finished, compose_config


def evaluated(where: Path, *overrides: str) -> dict[str, float]:
    cfg = compose_config("evaluate", "run=latest", *overrides)
    cfg.run = str(where)
    return evaluate(cfg)


def test_every_checkpoint_loads_weights_only(finished: Finished) -> None:
    run, metrics = finished
    for path in (run.best, run.last, *run.checkpoints()):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        assert checkpoint["run"]["config"]["trainer"]["accelerator"] == "auto"
    newest = torch.load(run.checkpoints()[0], map_location="cpu", weights_only=True)
    assert newest["global_step"] == metrics["steps"] - 1  # before the last step
    assert torch.load(run.last, weights_only=True)["global_step"] == metrics["steps"]


@pytest.mark.parametrize("accelerator", DEVICES)
def test_evaluate_gives_the_numbers_of_the_test_in_train(
    finished: Finished, accelerator: str
) -> None:
    run, metrics = finished
    again = evaluated(run.path, f"trainer.accelerator={accelerator}")
    # Devices differ in the last digits, and a sample at the border may fall on either side.
    assert again == pytest.approx({key: metrics[key] for key in again}, abs=0.003)
    if accelerator == "cpu" and not torch.cuda.is_available() and not torch.mps.is_available():
        assert again == {key: metrics[key] for key in again}


def test_evaluate_needs_only_the_checkpoint_file(finished: Finished, tmp_path: Path) -> None:
    run, metrics = finished
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(run.best.read_bytes())
    assert evaluated(alone)["test/loss"] == pytest.approx(metrics["test/loss"], abs=0.003)
    assert (tmp_path / "evaluate" / "metrics.json").is_file()


@pytest.mark.parametrize("tag", ["mps:0", "cuda:7"])
def test_a_checkpoint_of_another_device_loads_here(
    finished: Finished, tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = finished
    foreign = tmp_path / "foreign.ckpt"
    checkpoint = torch.load(run.best, map_location="cpu", weights_only=True)
    with monkeypatch.context() as patched:  # what torch.save writes down as a tensor's device
        patched.setattr(torch.serialization, "location_tag", lambda storage: tag)
        torch.save(checkpoint, foreign)
    ours, theirs = (load_run(str(path))[0].state_dict() for path in (run.best, foreign))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_task_loads_by_lightnings_own_method_with_its_own_hyper_parameters(
    small: Compose,
) -> None:
    cfg = small("task.label_smoothing=0.1")
    train(cfg)
    best = run_folder(cfg).best
    parts = {key: instantiate(cfg[key]) for key in ("model", "optimizer", "scheduler")}
    task = ClassificationTask.load_from_checkpoint(best, **parts)
    assert task.label_smoothing == 0.1
    trained = torch.load(best, weights_only=True)["state_dict"]
    assert all(torch.equal(trained[key], tensor) for key, tensor in task.state_dict().items())


class OwnHyperParameters(ClassificationTask):
    """Keeps what it was given in the ordinary way, and reads it in a step."""

    def __init__(self, *args: Any, lr: float = 0.5, seed: int = 3, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.save_hyperparameters("lr", "seed")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        assert self.hparams["lr"] == self.hparams.lr == 0.5
        return super().training_step(batch, batch_idx)


class OwnData(DigitsDataModule):
    def __init__(self, *args: Any, seed: int = 4, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.save_hyperparameters()


def test_hyper_parameters_of_a_task_and_its_data_are_their_own(small: Compose) -> None:
    cfg = small(f"task._target_={__name__}.OwnHyperParameters", f"data._target_={__name__}.OwnData")
    train(cfg)
    saved = torch.load(run_folder(cfg).checkpoints()[0], weights_only=True)
    assert saved["hyper_parameters"] == {"label_smoothing": 0.0, "lr": 0.5, "seed": 3}
    assert saved["datamodule_hyper_parameters"]["seed"] == 4


def test_data_that_read_no_inputs_say_so_in_predict(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(DigitsDataModule, "read_inputs")
    cfg = compose_config("predict", "run=latest", "input=x")
    cfg.run = str(finished[0].path)
    with pytest.raises(UserError, match="neither a predict_dataloader nor read_inputs"):
        predict(cfg)


def test_predict_without_an_input_takes_lightnings_predict_dataloader(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def predict_dataloader(datamodule: Any) -> DataLoader[Any]:
        return DataLoader(datamodule.splits["test"], batch_size=100)

    monkeypatch.setattr(DigitsDataModule, "predict_dataloader", predict_dataloader)
    cfg = compose_config("predict", "run=latest", f"output={tmp_path.as_posix()}/out.pt")
    cfg.run = str(finished[0].path)
    predictions = torch.load(predict(cfg), weights_only=True)
    assert torch.cat(predictions).shape == (360, 10)


def test_weights_of_other_code_are_refused_in_a_sentence(
    finished: Finished, tmp_path: Path
) -> None:
    checkpoint = torch.load(finished[0].best, map_location="cpu", weights_only=True)
    checkpoint["state_dict"]["extra.weight"] = torch.zeros(3)
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="made by other code"):
        load_run(str(tmp_path / "other.ckpt"))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "torn", "foreign"])
def test_what_is_no_checkpoint_is_refused_in_a_sentence(
    finished: Finished, tmp_path: Path, content: Any
) -> None:
    path = tmp_path / "bad.ckpt"
    if content == "torn":
        content = finished[0].best.read_bytes()[:20000]
    if content == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match="not a whole checkpoint"):
        load_run(str(path))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.os.system",
        "torch.hub.load",
        "torch.load",
        "torch.nn.modules.module.torch.os.system",
        "image_project.tasks.classification.F.torch.hub.load",
        "image_project.engine.cli.os.system",
        "image_project.data.images.Path.touch",
        "image_project.engine.run.write_json",
        "image_project.tools.runs.main",
    ],
)
def test_a_strangers_config_runs_no_code(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    checkpoint = torch.load(finished[0].best, map_location="cpu", weights_only=True)
    harm = {"_target_": target, "_args_": ["echo no"]}
    config = checkpoint["run"]["config"]
    monkeypatch.setattr("os.system", lambda command: pytest.fail("it ran"))
    elsewhere = {**config, "harm": harm, "task": {**config["task"], "model": "${harm}"}}
    for strange in (
        {**config, "task": {**config["task"], "model": harm}},
        {**config, "data": harm},
        elsewhere,
    ):
        torch.save({**checkpoint, "run": {"config": strange}}, tmp_path / "strange.ckpt")
        with pytest.raises(UserError, match=r"not trusted|not resolved"):
            load_run(str(tmp_path / "strange.ckpt"))


def test_what_stands_in_a_folder_of_the_owners_own_is_trusted(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("image_project.losses", "image_project.losses.huber"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    own = type("OwnTask", (ClassificationTask,), {"__module__": "image_project.losses.huber"})
    monkeypatch.setattr(sys.modules["image_project.losses.huber"], "OwnTask", own, raising=False)
    cfg = small("task._target_=image_project.losses.huber.OwnTask")
    metrics = train(cfg)
    assert (
        evaluated(run_folder(cfg).path, "+trainer.limit_test_batches=1").items() <= metrics.items()
    )


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Another library, whose function makes a model."""

    def create_model(width: int) -> torch.nn.Module:
        layers = (torch.nn.Linear(64, width), torch.nn.Linear(width, 10))
        return torch.nn.Sequential(torch.nn.Flatten(), *layers)

    monkeypatch.setitem(sys.modules, "other_library", ModuleType("other_library"))
    monkeypatch.setattr("other_library.create_model", create_model, raising=False)
    monkeypatch.setattr(checkpoint_file, "ALSO_TRUSTED", tmp_path / "trusted.yaml")
    return "other_library.create_model"


@pytest.mark.parametrize("names", ["trusted: []", "trusted: [other_library.create]", "trusted:"])
def test_what_evaluate_would_refuse_is_said_before_the_training_with_the_way_to_allow_it(
    small: Compose, library: str, caplog: pytest.LogCaptureFixture, names: str
) -> None:
    cfg = small()
    cfg.model = {"_target_": library, "width": 8}
    checkpoint_file.ALSO_TRUSTED.write_text(names)
    build(open_run(cfg))
    assert f"refuse to run {library} " in caplog.text
    caplog.clear()
    checkpoint_file.ALSO_TRUSTED.write_text(f"trusted: [{library}]")
    metrics = train(cfg)
    assert library not in caplog.text
    run = run_folder(cfg).path
    again = evaluated(run, "+trainer.limit_test_batches=1")
    assert again.items() <= metrics.items()
    checkpoint_file.ALSO_TRUSTED.write_text(names)
    with pytest.raises(UserError, match=f"{library}, which is not trusted.*trusted.yaml"):
        evaluated(run)


def test_a_strangers_pickle_runs_no_code(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "harm",)

    torch.save({"state_dict": {}, "run": Harm()}, tmp_path / "strange.ckpt")
    with pytest.raises(UserError, match="not a whole checkpoint"):
        load_run(str(tmp_path / "strange.ckpt"))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("harmful", [Path.touch, torch.save])
def test_a_strangers_folder_runs_no_code(tmp_path: Path, harmful: Any) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return harmful, (tmp_path / "harm",) * (2 if harmful is torch.save else 1)

    (tmp_path / "part").mkdir()
    (tmp_path / "part" / ".metadata").write_bytes(pickle.dumps(Harm()))
    torch.save({"run": {"config": {"data": {}, "task": {}}}}, tmp_path / "part" / "rest.pt")
    commit_folder(tmp_path / "part", tmp_path / "strange.ckpt")
    with pytest.raises(UserError, match="not a whole checkpoint"):
        load_run(str(tmp_path / "strange.ckpt"))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("spoil", ["flip", "lose"])
def test_a_folder_with_a_changed_or_lost_file_is_not_whole(tmp_path: Path, spoil: str) -> None:
    part = tmp_path / "part"
    part.mkdir()
    (part / "a").write_bytes(b"weights")
    commit_folder(part, tmp_path / "whole")
    assert checksum_matches(tmp_path / "whole")
    if spoil == "flip":
        (tmp_path / "whole" / "a").write_bytes(b"weighty")
    else:
        (tmp_path / "whole" / "a").unlink()
    assert not checksum_matches(tmp_path / "whole")


def test_a_folder_without_a_checkpoint_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run=FOLDER"):
        find(str(tmp_path), "runs")
    with pytest.raises(UserError, match="runs_dir"):
        find("latest", str(tmp_path))
