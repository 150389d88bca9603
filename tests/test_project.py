"""What a person does with a new project: lint it, test it, train, evaluate, predict, extend."""

import json
import re
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import bake, run

PACKAGE = "my_lightning_project"
SLUG = "my-lightning-project"
SCRIPTS = Path(sysconfig.get_path("scripts"))
SHORT = ("trainer.max_epochs=2",)


def written_files(readme: str) -> dict[str, str]:
    """The files that a README shows: a code block after a line with the path, whole."""
    pattern = r"`(src/[^`]+\.(?:py|yaml))`[^\n]*:\n\n```(?:python|yaml)\n(.*?)```"
    return dict(re.findall(pattern, readme, re.DOTALL))


def commands(readme: str, section: str) -> list[list[str]]:
    """The `python -m` lines of a README's section."""
    (body,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", readme, re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^python (-m [^#\n]+)", body, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_lint_format_and_types_are_clean(project: Path) -> None:
    for check in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]):
        done = run(sys.executable, "-m", *check, cwd=project)
        assert done.returncode == 0, done.stdout


def test_its_own_tests_pass(project: Path) -> None:
    """Among them: every experiment runs a fast_dev_run on each device of this machine."""
    done = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.fixture(scope="module")
def trained(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder apart from the project, in which both experiments have been trained in full."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for options in ([], ["experiment=convnet"]):
        done = run(SCRIPTS / f"{SLUG}-train", *options, cwd=elsewhere)
        assert done.returncode == 0, done.stderr
    return elsewhere


@pytest.mark.parametrize(("model", "accuracy"), [("mlp", 0.97), ("convnet", 0.985)])
def test_the_experiments_reach_their_accuracy(trained: Path, model: str, accuracy: float) -> None:
    (metrics,) = trained.glob(f"runs/{model}-*/metrics.json")
    assert json.loads(metrics.read_text(encoding="utf-8"))["test/acc"] >= accuracy


def test_the_console_scripts_work_from_another_folder(trained: Path) -> None:
    from PIL import Image

    Image.new("L", (40, 40)).save(trained / "some.png")
    for name in ("mlp", "convnet"):
        (folder,) = trained.glob(f"runs/{name}-*")
        script = run(
            SCRIPTS / f"{SLUG}-evaluate", f"run={folder.relative_to(trained)}", cwd=trained
        )
        module = run(sys.executable, "-m", f"{PACKAGE}.evaluate", f"run={folder}", cwd=trained)
        assert script.returncode == module.returncode == 0, script.stderr + module.stderr
        again = json.loads((folder / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
        before = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        assert again["test/acc"] == before["test/acc"]
    options = ("run=latest", "input=some.png", "output=some.csv")
    done = run(SCRIPTS / f"{SLUG}-predict", *options, cwd=trained)
    assert done.returncode == 0, done.stderr
    assert (trained / "some.csv").read_text(encoding="utf-8").startswith("input,class,p(0),")


def test_training_again_shows_the_finished_run(trained: Path) -> None:
    before = sorted(trained.glob("runs/*"))
    done = run(SCRIPTS / f"{SLUG}-train", cwd=trained)
    assert "is finished" in done.stdout
    assert "epoch 1/" not in done.stdout
    assert sorted(trained.glob("runs/*")) == before


def test_a_checkpoint_alone_is_enough_elsewhere(trained: Path, tmp_path: Path) -> None:
    (best,) = trained.glob("runs/mlp-*/checkpoints/best.ckpt")
    shutil.copy(best, tmp_path / "taken home.ckpt")
    done = run(sys.executable, "-m", f"{PACKAGE}.evaluate", "run=taken home.ckpt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_command_in_the_readme_works(project: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (30, 30)).save(tmp_path / "digit.png")
    found = commands((project / "README.md").read_text(encoding="utf-8"), "Commands")
    # Those of a bucket are run in test_object_storage.py.
    found = [command for command in found if "s3://" not in " ".join(command)]
    assert len(found) == 8
    for command in found:
        short = SHORT if command[1].endswith(".train") else ()
        done = run(sys.executable, *command, *short, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_what_the_readme_adds_trains_and_is_tested_by_itself(tmp_path: Path) -> None:
    """A model, a dataset and experiments, each by the files that the README shows."""
    extended = bake(tmp_path / "extended")
    readme = (extended / "README.md").read_text(encoding="utf-8")
    added = written_files(readme)
    assert len(added) == 6
    for path, text in added.items():
        (extended / path).write_text(text, encoding="utf-8")
    here = {"PYTHONPATH": str(extended / "src")}
    examples = commands(readme, "Make it yours")
    assert len(examples) == 3
    for command in examples:
        done = run(sys.executable, *command, *SHORT, cwd=tmp_path, **here)
        assert done.returncode == 0, done.stderr
    tests = ("linear or wine or wide or package", "-q", "-p", "no:cacheprovider")
    done = run(sys.executable, "-m", "pytest", "-k", *tests, cwd=extended, **here)
    assert done.returncode == 0, done.stdout
    for name in ("model=linear", "data-wine", "experiment-wide", "cpu-wine"):
        listed = run(sys.executable, "-m", "pytest", "--co", "-q", cwd=extended, **here).stdout
        assert f"[{name}]" in listed
    for check in (["check"], ["format", "--check"]):
        done = run(sys.executable, "-m", "ruff", *check, "--no-cache", ".", cwd=extended)
        assert done.returncode == 0, done.stdout


def test_without_the_optional_files_its_tests_pass_too(tmp_path: Path) -> None:
    bare = bake(tmp_path / "bare", github_actions="no", license="Proprietary")
    quick = ("tests/test_configs.py", "tests/test_device.py", "tests/test_rules.py")
    options = ("-q", "-p", "no:cacheprovider")
    here = {"PYTHONPATH": str(bare / "src")}
    done = run(sys.executable, "-m", "pytest", *options, *quick, cwd=bare, **here)
    assert done.returncode == 0, done.stdout


def test_a_bug_in_a_model_keeps_its_traceback(tmp_path: Path) -> None:
    """Only a user's mistake becomes a sentence; a developer's shows where it is."""
    buggy = bake(tmp_path / "buggy")
    source = buggy / "src" / PACKAGE / "models" / "mlp.py"
    text = source.read_text(encoding="utf-8")
    source.write_text(text.replace("super().__init__()", "super().__init__(); 1 + '1'"))
    here = {"PYTHONPATH": str(buggy / "src")}
    done = run(sys.executable, "-m", f"{PACKAGE}.train", cwd=tmp_path, **here)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "mlp.py" in done.stderr


@pytest.mark.slow
def test_make_makes_a_working_environment_from_nothing(tmp_path: Path) -> None:
    """`make setup train test lint`, with nothing but the pinned versions of constraints.txt."""
    fresh = bake(tmp_path / "fresh")
    pinned = (Path(__file__).parents[1] / "constraints.txt").as_uri()
    # An outer make hands its own variables down by MAKEFLAGS.
    env = {"PIP_CONSTRAINT": pinned, "PYTHON": sys.executable, "MAKEFLAGS": "", "ARGS": ""}
    for target in ("setup", "train", "test", "lint"):
        done = run("make", target, cwd=fresh, **env)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert list(fresh.glob("runs/mlp-*/metrics.json"))
