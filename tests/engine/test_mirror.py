"""A run with its copy at a URL: what one machine has left there, any other resumes from."""

import logging
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from image_project.engine.errors import UserError
from image_project.engine.files import CHECKSUMS
from image_project.engine.remote import lease
from image_project.engine.remote.mirror import Mirror
from image_project.engine.remote.url import Folder
from image_project.engine.run import find, run_folder
from image_project.evaluate import evaluate
from image_project.tasks.classification import ClassificationTask
from image_project.train import train
from omegaconf import DictConfig

from .small_runs import SMALL, Result, compose_config, digest, result, stop_at

one_kind = pytest.mark.parametrize("far", ["memory"], indirect=True)  # it differs in nothing here


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Go on as another machine, which has nothing of this one's."""

    def enter(name: str) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setattr("socket.gethostname", lambda: name)

    enter("first")
    return enter


@pytest.fixture(params=["file", "memory"])
def far(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URL for runs."""
    return f"{request.param}://{tmp_path.as_posix()}/far"


@pytest.fixture
def disk(tmp_path: Path) -> str:
    """A URL for runs which is a folder."""
    return f"file://{tmp_path.as_posix()}/far"


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Result:
    cfg = compose_config(
        "train", f"runs_dir={tmp_path_factory.mktemp('undisturbed').as_posix()}", *SMALL
    )
    train(cfg)
    return result(run_folder(cfg))


def at(url: str, *overrides: str) -> DictConfig:
    return compose_config("train", f"runs_dir={url}", *SMALL, *overrides)


def steps(folder: Folder) -> list[str]:
    return sorted(name for name in folder.names() if name.startswith("checkpoints/step_"))


def test_a_run_resumes_elsewhere_from_its_copy_alone_to_the_same_bits(
    far: str, machine: Any, monkeypatch: pytest.MonkeyPatch, undisturbed: Result
) -> None:
    assert stop_at(6, at(far)) == 143
    machine("second")
    assert not Path("runs").exists()
    assert stop_at(8, at(far, "resume=must")) == 143
    machine("first")  # which has less than the copy has by now
    train(at(far, "resume=must"))
    run = run_folder(at(far))
    assert result(run) == undisturbed
    assert run.mirror is not None
    there = run.mirror.there
    assert steps(there) == [f"checkpoints/step_{step:09d}.ckpt" for step in (8, 9)]
    for name in there.names():
        assert there.read(name) == (run.path / name).read_bytes()
    machine("third")
    assert train(at(far)).items() < undisturbed[3].items()
    assert not run_folder(at(far)).checkpoints()  # a look at the results needs none
    assert digest(run_folder(at(far)).best) == undisturbed[1]


def test_a_run_killed_at_any_moment_of_its_copying_resumes_to_the_same_bits(
    disk: str, machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Result
) -> None:
    far, moments = tmp_path / "far", tmp_path / "moments"
    put, remove = Folder.put, Folder.remove

    def seen(change: Any) -> Any:
        def changed(folder: Folder, *args: Any) -> None:
            change(folder, *args)
            if args[0] != lease.SIGN:
                moment = moments / f"{len(list(moments.glob('*'))):03d}"
                shutil.copytree(far, moment, ignore=shutil.ignore_patterns(lease.SIGN))

        return changed

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "put", seen(put))
        patched.setattr(Folder, "remove", seen(remove))
        train(at(disk))
    left = sorted(moments.iterdir())
    resumable = [moment for moment in left if list(moment.glob("*/checkpoints/step_*"))]
    # Once there is a checkpoint, there always is.
    assert resumable == left[-len(resumable) :]
    for moment in (left[0], resumable[0], *resumable[1 :: max(1, len(resumable) // 4)]):
        shutil.rmtree(far)
        moment.rename(far)
        machine(f"after {moment.name}")
        train(at(disk))
        run = run_folder(at(disk))
        run.fetch()  # the checkpoints, had it been finished
        assert result(run) == undisturbed


@one_kind
def test_training_does_not_wait_for_the_network(
    far: str, monkeypatch: pytest.MonkeyPatch, undisturbed: Result
) -> None:
    trained, put = threading.Event(), Folder.put

    def slow(folder: Folder, name: str, source: Any) -> None:
        if name != lease.SIGN:
            assert trained.wait(60)
        put(folder, name, source)

    monkeypatch.setattr(Folder, "put", slow)
    monkeypatch.setattr(ClassificationTask, "on_train_end", lambda task: trained.set())
    train(at(far))
    run = run_folder(at(far))
    assert result(run) == undisturbed
    assert run.mirror is not None
    assert "checkpoints/step_000000009.ckpt" in steps(run.mirror.there)
    assert len(run.checkpoints()) == 2  # the one that was kept until it was copied is gone


@one_kind
def test_without_a_network_training_resumes_and_the_same_command_copies_the_rest(
    far: str,
    machine: Any,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Result,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put = Folder.put
    gone = {"from": 4, "to": 7}

    def lost(folder: Folder, name: str, source: Any) -> None:
        step = int(Path(name).stem.removeprefix("step_")) if "/step_" in name else 0
        if gone["from"] <= step < gone["to"]:
            raise UserError(f"{folder.url} cannot be used: no network.")
        put(folder, name, source)

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "put", lost)
        assert stop_at(4, at(far)) == 143  # saved as step 5
        assert "no network" in caplog.text
        machine("second")
        gone["to"] = 1000
        with pytest.raises(UserError, match="the same command copies"):
            train(at(far))
    assert train(at(far))["steps"] == 10
    machine("third")
    run_folder(at(far)).fetch()
    assert result(run_folder(at(far))) == undisturbed


def test_a_run_is_the_same_wherever_it_lies_and_plain_copies_of_it_go_on(
    disk: str,
    machine: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Result,
) -> None:
    assert stop_at(3, at("runs")) == 143
    shutil.copytree("runs", tmp_path / "far")
    machine("second")
    assert run_folder(at("runs")).path == run_folder(at(disk)).path
    assert stop_at(6, at(disk, "resume=must")) == 143
    machine("third")
    shutil.copytree(tmp_path / "far", "runs")
    train(at("runs", "resume=must"))
    assert result(run_folder(at("runs"))) == undisturbed


@one_kind
def test_resume_never_takes_a_name_that_is_free_there_too(far: str, machine: Any) -> None:
    train(at(far))
    first = run_folder(at(far)).path.name
    machine("second")
    assert run_folder(at(far, "resume=never")).path.name == f"{first}-2"


@one_kind
def test_evaluate_and_new_runs_start_from_a_url(far: str, machine: Any) -> None:
    tested = train(at(far))["test/loss"]
    run = run_folder(at(far))
    assert run.mirror is not None
    url = run.mirror.there.url
    newest = f"{url}/checkpoints/step_000000009.ckpt"
    longer = ("scheduler=constant", "trainer.max_epochs=3")
    by_path = at("other", *longer, f"ckpt_path={run.checkpoints()[0].resolve().as_posix()}")
    machine("second")
    limit = "trainer.limit_test_batches=1"
    for where in (url, f"{url}/checkpoints/best.ckpt", "latest"):
        cfg = compose_config("evaluate", f"run={where}", f"runs_dir={far}", f"+{limit}")
        assert evaluate(cfg)["test/loss"] == tested
    assert (Path("runs") / run.path.name / "evaluate" / "metrics.json").is_file()
    by_url = at("other", *longer, f"ckpt_path={newest}")
    assert run_folder(by_url).path.name == run_folder(by_path).path.name
    assert train(by_url)["steps"] == 15
    by_url, by_path = (
        at("other", f"init_from={where}") for where in (url, "runs/" + run.path.name)
    )
    assert run_folder(by_url).path.name == run_folder(by_path).path.name
    with pytest.raises(UserError, match="is a folder"):
        train(at("other", *longer, f"ckpt_path={url}"))
    with pytest.raises(UserError, match=f"No checkpoint in {far}/nothing"):
        find(f"{far}/nothing", "runs")
    with pytest.raises(UserError, match=f"There is no {far}/x.ckpt"):
        find(f"{far}/x.ckpt", "runs")
    with pytest.raises(UserError, match="has a checkpoint"):
        find("latest", f"{far}/nothing")


def test_a_second_machine_is_refused_while_the_first_gives_signs_of_life(
    far: str, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EVERY", 0.3)
    run = run_folder(at(far))
    run.path.mkdir(parents=True)
    assert run.mirror is not None
    with run.mirror.live():
        machine("second")
        with pytest.raises(UserError, match=r"first:.* is training .*: wait for it"):
            train(at(far))
    assert lease.SIGN not in run.mirror.there.names()
    assert train(at(far))["steps"] == 10


def test_a_machine_that_is_gone_is_waited_for_and_one_that_slept_gives_way(
    far: str, machine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "EVERY", 0.1)
    gone = Mirror(Path("runs/run"), f"{far}/run")
    gone.lease._leave_sign()  # and was killed
    machine("second")
    with caplog.at_level(logging.INFO), Mirror(Path("runs/run"), f"{far}/run").live():
        assert "has not said that it ended" in caplog.text
        gone.lease._renew()  # it had only slept
        with pytest.raises(UserError, match=r"second:.* trains .* now"):
            gone.push()


def test_a_checkpoint_may_be_a_folder_and_one_without_its_checksums_is_none(
    far: str, machine: Any
) -> None:
    parts = ("rank_0", "rank_1", CHECKSUMS)

    def save(step: int) -> Path:
        folder = Path(f"runs/run/checkpoints/step_{step:09d}.ckpt")
        folder.mkdir(parents=True)
        for part in parts:
            (folder / part).write_text(f"{part} of {step}")
        return folder

    mirror = Mirror(Path("runs/run"), f"{far}/run")
    for step in (1, 2, 3):
        save(step)
        mirror.finish()
    kept = [f"checkpoints/step_{step:09d}.ckpt/{part}" for step in (2, 3) for part in parts]
    assert steps(mirror.there) == sorted(kept)
    mirror.there.put("checkpoints/step_000000004.ckpt/rank_0", b"killed before the rest")
    machine("second")
    save(3).joinpath(CHECKSUMS).unlink()  # as if killed while it was fetched
    second = Mirror(Path("runs/run"), f"{far}/run")
    second.fetch()
    for name in kept:
        assert Path("runs/run", name).read_text() == f"{Path(name).name} of {int(name[17:26])}"
    save(5)
    second.finish()
    assert {int(name[17:26]) for name in steps(second.there)} == {3, 5}


@one_kind
def test_a_file_outside_of_the_runs_folder_is_not_fetched(far: str) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file(f"{far}/run/../../escaped", b"")
    files.pipe_file(f"{far}/run/checkpoints/step_000000001.ckpt", b"")
    Mirror(Path("runs/run"), f"{far}/run").fetch()
    assert not list(Path("..").rglob("escaped"))
    assert Path("runs/run/checkpoints/step_000000001.ckpt").is_file()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FileNotFoundError("The specified bucket does not exist"), "make the bucket, or correct"),
        (PermissionError("Access Denied"), r"may not be used \(Access Denied\): check the keys"),
        (ConnectionError("Could not connect"), "cannot be used: Could not connect"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "pipe_file", fail)
    cfg = at("memory://bucket/runs")
    with pytest.raises(UserError, match=says):
        train(cfg)
    assert not run_folder(cfg).config.exists()


def test_a_missing_package_and_an_unknown_kind_of_url_are_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[s3\]'"):
        run_folder(at("s3://bucket/runs"))
    with pytest.raises(UserError, match="s4"):
        run_folder(at("s4://bucket/runs"))
