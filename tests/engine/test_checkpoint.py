"""A checkpoint is plain data, and evaluate, predict and a notebook need nothing else."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import compose_config, starter

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.checkpoint import load_run, load_task
from {{ cookiecutter.package_name }}.errors import UserError
from {{ cookiecutter.package_name }}.evaluate import evaluate
from {{ cookiecutter.package_name }}.predict import predict
from {{ cookiecutter.package_name }}.run import Run
from {{ cookiecutter.package_name }}.storage import is_sound, seal

Finished = tuple[Run, dict[str, float]]


def evaluated(where: Path, *overrides: str) -> dict[str, float]:
    cfg = compose_config("evaluate", "run=latest", *overrides)
    cfg.run = str(where)
    return evaluate(cfg)


def test_every_checkpoint_loads_weights_only(finished: Finished) -> None:
    run, metrics = finished
    assert run.best.is_file()
    for path in (run.best, *run.checkpoints()):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        assert checkpoint["hyper_parameters"]["trainer"]["accelerator"] == "auto"
    newest = torch.load(run.checkpoints()[0], map_location="cpu", weights_only=True)
    assert newest["global_step"] == metrics["steps"]


def test_evaluate_gives_the_numbers_of_the_test_in_train(
    finished: Finished, accelerator: str
) -> None:
    run, metrics = finished
    again = evaluated(run.folder, f"trainer.accelerator={accelerator}")
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
    ours, theirs = load_task(run.best).state_dict(), load_task(foreign).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_load_from_checkpoint_needs_no_further_argument(finished: Finished) -> None:
    run, _ = finished
    task = starter.Task.load_from_checkpoint(run.best)
    assert isinstance(task, starter.Task)
    assert not task.training


def test_a_task_without_an_answer_says_so_in_predict(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(starter.Task, "answer")
    cfg = compose_config("predict", "run=latest", "input=x")
    cfg.run = str(finished[0].folder)
    with pytest.raises(UserError, match="write one to use predict"):
        predict(cfg)


def test_weights_of_other_code_are_refused_in_a_sentence(
    finished: Finished, tmp_path: Path
) -> None:
    checkpoint = torch.load(finished[0].best, map_location="cpu", weights_only=True)
    checkpoint["state_dict"]["extra.weight"] = torch.zeros(3)
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="made by other code"):
        load_task(tmp_path / "other.ckpt")


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
        load_task(path)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.os.system",
        "torch.hub.load",
        "torch.load",
        "torch.nn.modules.module.torch.os.system",
        f"{starter.Task.__module__}.torch.hub.load",
        f"{package.__name__}.cli.os.system",
        f"{starter.Task.__module__}.Path.touch",
        f"{package.__name__}.run.write_json",
    ],
)
def test_a_strangers_config_runs_no_code(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    checkpoint = torch.load(finished[0].best, map_location="cpu", weights_only=True)
    harm = {"_target_": target, "_args_": ["echo no"]}
    config = checkpoint["hyper_parameters"]
    monkeypatch.setattr("os.system", lambda command: pytest.fail("it ran"))
    elsewhere = {**config, "harm": harm, "task": {**config["task"], "model": "${harm}"}}
    for strange in (
        {**config, "task": {**config["task"], "model": harm}},
        {**config, "data": harm},
        elsewhere,
    ):
        torch.save({**checkpoint, "hyper_parameters": strange}, tmp_path / "strange.ckpt")
        with pytest.raises(UserError, match=r"not trusted|not resolved"):
            load_run(str(tmp_path / "strange.ckpt"))


def test_a_strangers_pickle_runs_no_code(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "harm",)

    torch.save({"state_dict": {}, "hyper_parameters": Harm()}, tmp_path / "strange.ckpt")
    with pytest.raises(UserError, match="not a whole checkpoint"):
        load_task(tmp_path / "strange.ckpt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("harmful", [Path.touch, torch.save])
def test_a_strangers_folder_runs_no_code(tmp_path: Path, harmful: Any) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return harmful, (tmp_path / "harm",) * (2 if harmful is torch.save else 1)

    (tmp_path / "part").mkdir()
    (tmp_path / "part" / ".metadata").write_bytes(pickle.dumps(Harm()))
    torch.save({"hyper_parameters": {"data": {}, "task": {}}}, tmp_path / "part" / "rest.pt")
    seal(tmp_path / "part", tmp_path / "strange.ckpt")
    with pytest.raises(UserError, match="not a whole checkpoint"):
        load_task(tmp_path / "strange.ckpt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("spoil", ["flip", "lose"])
def test_a_folder_with_a_changed_or_lost_file_is_not_sound(tmp_path: Path, spoil: str) -> None:
    part = tmp_path / "part"
    part.mkdir()
    (part / "a").write_bytes(b"weights")
    seal(part, tmp_path / "sealed")
    assert is_sound(tmp_path / "sealed")
    if spoil == "flip":
        (tmp_path / "sealed" / "a").write_bytes(b"weighty")
    else:
        (tmp_path / "sealed" / "a").unlink()
    assert not is_sound(tmp_path / "sealed")


def test_a_folder_without_a_checkpoint_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run=FOLDER"):
        Run.find(str(tmp_path), "runs")
    with pytest.raises(UserError, match="runs_dir"):
        Run.find("latest", str(tmp_path))
