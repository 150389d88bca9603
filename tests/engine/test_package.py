"""What is installed is the wheel, so the wheel is what must work."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import run


@pytest.fixture(scope="module")
def installed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed, apart from the sources."""
    target = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    build = ["--no-deps", "--no-build-isolation", "--target", target, project]
    done = run(*pip, *build)
    assert done.returncode == 0, done.stderr
    return target


def test_the_wheel_has_every_config_source_and_page(project: Path, installed: Path) -> None:
    def files(folder: Path) -> set[Path]:
        names = {path.relative_to(folder) for path in folder.rglob("*.*") if path.suffix != ".pyc"}
        return {name for name in names if not any(part.startswith(".") for part in name.parts)}

    ours = files(project / "src" / "image_project")
    assert files(installed / "image_project") == ours
    assert Path("configs/train.yaml") in ours


def script(installed: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the console script, from which the sources cannot be seen."""
    (path,) = (installed / Path(sysconfig.get_path("scripts")).name).glob("image-project*")
    paths = os.environ["PYTHONPATH"].split(os.pathsep)
    hidden = [str(installed), *(one for one in paths if not one.startswith(os.environ["BAKED"]))]
    return run(path, *words, cwd=cwd, PYTHONPATH=os.pathsep.join(hidden))


def test_its_console_script_runs_each_command_from_a_foreign_folder(
    installed: Path, tmp_path: Path
) -> None:
    listed = script(installed, "--help", cwd=tmp_path)
    assert "evaluate" in listed.stdout
    settings = script(installed, "train", "--help", cwd=tmp_path)
    assert settings.returncode == 0, settings.stderr
    assert "model: convnet, mlp" in settings.stdout
    trained = script(installed, "train", "debug=fast", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr


def test_its_doctor_runs_from_a_foreign_folder(installed: Path, tmp_path: Path) -> None:
    done = script(installed, "doctor", "--json", cwd=tmp_path)
    rows = {row["name"]: row["state"] for row in json.loads(done.stdout)["rows"]}
    assert rows["device cpu"] == "ok"
    assert "auto accelerator" in rows
    assert list(tmp_path.iterdir()) == []
