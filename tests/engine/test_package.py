"""What is installed is the wheel, so the wheel is what must work."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import CONFIGS, names

import {{ cookiecutter.package_name }} as package

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed, apart from these sources."""
    target = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    build = ["--no-deps", "--no-build-isolation", "--target", str(target), str(ROOT)]
    subprocess.run([*pip, *build], check=True, stdin=subprocess.DEVNULL)
    return target


def test_the_wheel_has_every_config_and_source(installed: Path) -> None:
    sources = Path(package.__file__).parent
    ours = {path.relative_to(sources) for path in sources.rglob("*.*") if path.suffix != ".pyc"}
    shipped = installed / package.__name__
    theirs = {path.relative_to(shipped) for path in shipped.rglob("*.*") if path.suffix != ".pyc"}
    assert theirs == ours
    assert CONFIGS.relative_to(sources) / "train.yaml" in theirs


def run_script(
    installed: Path, name: str, argument: str, folder: Path
) -> subprocess.CompletedProcess[str]:
    scripts = installed / Path(sysconfig.get_path("scripts")).name
    (script,) = scripts.glob(f"*-{name}*")
    paths = [str(installed), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [script, argument],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "rehearse", "benchmark", "sweep"])
def test_its_console_scripts_run_from_a_foreign_folder(
    installed: Path, name: str, tmp_path: Path
) -> None:
    done = run_script(installed, name, "--help", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"model: {', '.join(names('model'))}" in done.stdout


def test_its_doctor_runs_from_a_foreign_folder(installed: Path, tmp_path: Path) -> None:
    done = run_script(installed, "doctor", "--json", tmp_path)
    rows = {row["name"]: row["state"] for row in json.loads(done.stdout)["rows"]}
    assert rows["device cpu"] == "ok"
    assert "auto accelerator" in rows
    assert list(tmp_path.iterdir()) == []
