"""The template with a project of five small files: it bakes in half a second, and every answer can
be read back from TOML, YAML and JSON."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = "{{cookiecutter.project_slug}}"
TEXTS = (
    "project_name",
    "project_slug",
    "package_name",
    "description",
    "author_name",
    "author_email",
    "license",
)


def load(path: str):
    """A module of the template, which is no package: imported by its path."""
    spec = spec_from_file_location(Path(path).stem, ROOT / path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_template(folder: Path) -> Path:
    project = folder / PROJECT
    workflows = project / ".github" / "workflows"
    workflows.mkdir(parents=True)
    for name in ("cookiecutter.json", "local_extensions.py"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "hooks", folder / "hooks")
    shutil.copy(ROOT / PROJECT / "LICENSE", project)
    (workflows / "ci.yml").write_bytes(b"echo: ${{ github.ref }}\n")
    literals = {field: f"{{{{ cookiecutter.{field} | quoted }}}}" for field in TEXTS}
    (project / "a.toml").write_text("".join(f"{f} = {v}\n" for f, v in literals.items()))
    (project / "a.yaml").write_text("".join(f"{f}: {v}\n" for f, v in literals.items()))
    members = ",\n".join(f'"{f}": {v}' for f, v in literals.items())
    (project / "a.json").write_text(f"{{\n{members}\n}}\n")
    return folder


def bake(template: Path, place: Path, *arguments: str, config=None, typed=None, env=None):
    """Run cookiecutter as a person does, into `place / "out"`; `config` is their default_context."""
    settings = {"replay_dir": str(place / "replay"), "default_context": config or {}}
    (place / "config.yaml").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "cookiecutter", str(template), *arguments]
    if typed is None and "--replay" not in arguments:
        command.append("--no-input")
    return subprocess.run(
        [*command, "--config-file", str(place / "config.yaml"), "-o", str(place / "out")],
        check=False,
        input=typed or "",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="backslashreplace",
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
    )


def write_replay(template: Path, place: Path, **answers) -> None:
    """What `--replay` reads: the answers of an earlier run, here edited by hand."""
    context = json.loads((template / "cookiecutter.json").read_text())
    given = {
        "project_name": "A",
        "project_slug": "a",
        "package_name": "a",
        "license": "MIT",
        **answers,
    }
    private = {key: "" for key in context if key.startswith("__")}
    replay = place / "replay" / f"{template.name}.json"
    replay.parent.mkdir(exist_ok=True)
    replay.write_text(json.dumps({"cookiecutter": {**context, **private, **given}}))


def created(place: Path) -> list[str]:
    """The projects made, by folder name."""
    out = place / "out"
    return sorted(entry.name for entry in out.iterdir()) if out.exists() else []


def read_back(project: Path) -> dict:
    """The answers as the project's files hold them, after checking that all three formats agree."""
    read = [
        tomllib.loads((project / "a.toml").read_text(encoding="utf-8")),
        yaml.safe_load((project / "a.yaml").read_text(encoding="utf-8")),
        json.loads((project / "a.json").read_text(encoding="utf-8")),
    ]
    assert read[0] == read[1] == read[2]
    return read[0]
