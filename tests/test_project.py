"""What a person does with a new project for images: lint, test, train, evaluate, predict, extend."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import TEMPLATE, bake, run
from readme import commands, extend, give

PACKAGE = "image_project"
SHORT = {
    "train": ["trainer.max_epochs=2"],
    "sweep": ["trainer.max_epochs=1", "trainer.limit_train_batches=2"],
    "benchmark": ["benchmark.rounds=1", "benchmark.steps=2"],
}
QUIET = ("-q", "-p", "no:cacheprovider")
PROJECTS = ("project", "text_project")


def shortened(command: list[str], short: dict[str, list[str]]) -> list[str]:
    return [*command, *([] if "--help" in command else short.get(command[0], []))]


def sources(project: Path) -> dict[str, str]:
    """Return the environment in which Python finds this project first."""
    return {"PYTHONPATH": str(project / "src")}


@pytest.fixture(scope="module")
def extended(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with all the files that its README shows."""
    return extend(project, tmp_path_factory.mktemp("extended"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the default run, trained in full, apart from the project."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = run(sys.executable, "-m", PACKAGE, "train", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    (folder,) = elsewhere.glob("runs/mlp-*")
    return folder


def metrics(folder: Path) -> dict[str, float]:
    return dict(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))


def test_lint_format_and_types_are_clean(extended: Path) -> None:
    found = found_by_linters(extended)
    assert not found, found


def found_by_linters(project: Path) -> str:
    ruff = ["ruff", "check", "--no-cache"], ["ruff", "format", "--check", "--no-cache"]
    # mypy reads PyTorch once for the projects of all starters.
    mypy = ["mypy", "--no-sqlite-cache", f"--cache-dir={os.environ['BAKED']}/mypy_cache"]
    found = ""
    for check in (*ruff, mypy):
        done = run(sys.executable, "-m", *check, cwd=project)
        found += done.stdout + done.stderr if done.returncode else ""
    return found


def test_its_own_tests_pass_with_what_the_readme_adds(extended: Path) -> None:
    done = run(sys.executable, "-m", "pytest", *QUIET, cwd=extended, **sources(extended))
    assert done.returncode == 0, done.stdout[-5000:]


def test_without_tools_and_deploy_its_tests_pass(text_project: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(text_project, bare, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    for folder in (bare / "src" / "text_project" / "tools", bare / "deploy"):
        shutil.rmtree(folder)
    done = run(sys.executable, "-m", "pytest", *QUIET, cwd=bare, **sources(bare))
    assert done.returncode == 0, done.stdout[-5000:]
    assert "could not import 'text_project.tools.rehearse.__main__'" in done.stdout


def test_the_language_models_rehearse(text_project: Path) -> None:
    rehearse = ("tests/test_rehearse.py", *QUIET)
    done = run(sys.executable, "-m", "pytest", *rehearse, cwd=text_project)
    assert done.returncode == 0, done.stdout[-5000:]


def test_its_own_tests_find_what_the_readme_adds(extended: Path) -> None:
    listed = run(sys.executable, "-m", "pytest", "--co", *QUIET, cwd=extended, **sources(extended))
    for name in ("wave", "regression", "curve", "gradient_norm"):
        assert re.search(rf"::.*\b{name}\b", listed.stdout), name


def test_every_command_in_the_readme_works(project: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (30, 30)).save(tmp_path / "digit.png")
    found = commands((project / "README.md").read_text(encoding="utf-8"), "Commands", PACKAGE)
    assert len(found) == 9
    failed = give(PACKAGE, [shortened(command, SHORT) for command in found], cwd=tmp_path)
    assert not failed, failed
    (predictions,) = tmp_path.glob("runs/*/predictions.csv")
    assert predictions.read_text(encoding="utf-8").startswith("input,class,p(0),")


def test_what_the_readme_adds_trains(extended: Path, tmp_path: Path) -> None:
    readme = (extended / "README.md").read_text(encoding="utf-8")
    found = commands(readme, "Make it yours", PACKAGE)
    assert len(found) == 2
    failed = give(PACKAGE, found, cwd=tmp_path, **sources(extended))
    assert not failed, failed
    wide, narrow = sorted(tmp_path.glob("runs/curve-*"), key=lambda run: metrics(run)["test/loss"])
    assert metrics(wide)["test/loss"] < 0.01
    assert "train/gradient_norm" in (narrow / "metrics.csv").read_text(encoding="utf-8")
    assert list((narrow / "tensorboard").glob("events.*"))


def test_the_default_reaches_its_accuracy(trained: Path) -> None:
    assert metrics(trained)["test/acc"] >= 0.97
    assert {"curves.png", "confusion.png"} <= {path.name for path in trained.iterdir()}


@pytest.mark.slow
def test_the_convnet_reaches_its_accuracy(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", PACKAGE, "train", "experiment=convnet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("runs/convnet-*")
    assert metrics(folder)["test/acc"] >= 0.985


def test_a_checkpoint_alone_is_enough_elsewhere(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "checkpoints" / "best.ckpt", tmp_path / "taken home.ckpt")
    failed = give(PACKAGE, [["evaluate", "run=taken home.ckpt"]], cwd=tmp_path)
    assert not failed, failed
    assert metrics(tmp_path / "evaluate")["test/acc"] == metrics(trained)["test/acc"]


def test_the_same_command_shows_the_finished_run(trained: Path) -> None:
    done = run(sys.executable, "-m", PACKAGE, "train", cwd=trained.parents[1])
    assert "is finished" in done.stdout
    assert "epoch 1/" not in done.stdout
    assert list(trained.parent.iterdir()) == [trained]


def test_a_notebook_loads_a_run_as_the_page_of_the_engine_says(
    project: Path, trained: Path
) -> None:
    page = project / "src" / PACKAGE / "engine" / "README.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    code = code.replace("<package>", PACKAGE) + (
        'datamodule.setup("test")\n'
        "inputs, targets = next(iter(datamodule.test_dataloader()))\n"
        "assert (task(inputs).argmax(1) == targets).float().mean() > 0.9\n"
    )
    done = run(sys.executable, "-c", code, cwd=trained.parents[1])
    assert done.returncode == 0, done.stderr


def test_a_bug_in_a_model_keeps_its_traceback(project: Path, tmp_path: Path) -> None:
    """Only a user's mistake becomes a sentence; a developer's shows where it is."""
    buggy = tmp_path / "buggy"
    shutil.copytree(project / "src", buggy / "src")
    source = buggy / "src" / PACKAGE / "models" / "mlp.py"
    text = source.read_text(encoding="utf-8")
    source.write_text(text.replace("super().__init__()", "super().__init__(); 1 + '1'"))
    done = run(sys.executable, "-m", PACKAGE, "train", cwd=tmp_path, **sources(buggy))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "mlp.py" in done.stderr


@pytest.mark.parametrize("made", PROJECTS)
def test_its_pages_are_short_and_their_links_lead_somewhere(
    request: pytest.FixtureRequest, made: str
) -> None:
    folder: Path = request.getfixturevalue(made)
    pages = [path for path in folder.rglob("*.md") if "runs" not in path.parts]
    assert not dead_links(pages)
    length = {path.relative_to(folder).as_posix(): lines(path) for path in pages}
    assert length["README.md"] < 200
    assert length["AGENTS.md"] <= 40
    rooms = {page: count for page, count in length.items() if page.startswith("src/")}
    assert len(rooms) >= 13
    assert max(rooms.values()) <= 80, rooms


def test_the_links_of_the_template_lead_somewhere() -> None:
    pages = [*TEMPLATE.glob("*.md"), *(TEMPLATE / "docs").rglob("*.md")]
    assert len(pages) >= 8
    assert not dead_links(pages)
    assert lines(TEMPLATE / "README.md") <= 150


def lines(page: Path) -> int:
    return len(page.read_text(encoding="utf-8").splitlines())


def dead_links(pages: list[Path]) -> list[tuple[str, str]]:
    """Return page and link, where the file, or the heading after `#`, is not there."""
    dead = []
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" in link:
                continue
            name, _, heading = link.partition("#")
            target = page.parent / name if name else page
            there = target.is_file()
            if there and heading:
                there = heading in headings(target)
            if not there:
                dead.append((page.name, link))
    return dead


def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


@pytest.mark.slow
def test_make_makes_a_working_environment_from_nothing(tmp_path: Path) -> None:
    """`make setup train test lint`, with nothing but the pinned versions of constraints.txt."""
    fresh = bake(tmp_path / "fresh")
    pinned = (TEMPLATE / "constraints.txt").as_uri()
    # An outer make passes its own variables on by MAKEFLAGS.
    env = {"PIP_CONSTRAINT": pinned, "PYTHON": sys.executable, "MAKEFLAGS": "", "ARGS": ""}
    for target in ("setup", "train", "test", "lint"):
        done = run("make", target, cwd=fresh, PYTHONPATH="", **env)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert list(fresh.glob("runs/mlp-*/metrics.json"))
