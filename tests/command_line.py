"""cookiecutter's command line in a process of its own, forked from one that has imported it already:
a refusal takes a tenth of a second, and hundreds of answers can be tried."""

import json
import multiprocessing
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
PROCESSES = multiprocessing.get_context(START)
if START == "forkserver":
    PROCESSES.set_forkserver_preload(["cookiecutter.cli", "cookiecutter.extensions", "slugify"])


@dataclass(frozen=True)
class Done:
    status: int | None  # None: it hung
    said: str  # stdout and stderr


def become_cookiecutter(arguments: list[str], place: Path, typed: Path) -> None:
    said = os.open(place / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.dup2(os.open(typed, os.O_RDONLY), 0)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - as Python starts
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    os.environ["CANARY"] = str(place / "canary")  # what code in an answer would make
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.chdir(place)
    from cookiecutter.cli import main

    main(arguments, prog_name="cookiecutter")


def cookiecutter(template: Path, place: Path, channel: str, answers: dict) -> Done:
    """Give `answers` as key=value, by a user's config, by a replay or typed; `place` is empty."""
    config = {"replay_dir": str(place / "replay"), "cookiecutters_dir": str(place / "templates")}
    arguments = [str(template), "--output-dir", str(place / "out"), "--config-file", "config.yaml"]
    typed = Path(os.devnull)
    if channel == "key=value":
        arguments += ["--no-input", *(f"{field}={answer}" for field, answer in answers.items())]
    elif channel == "config":
        arguments.append("--no-input")
        config["default_context"] = answers
    elif channel == "replay":
        arguments.append("--replay")
        write_replay(template, place / "replay", answers)
    elif channel == "typed":
        typed = place / "typed"
        lines = [str(answers.get(field, "")) for field in questions(template)]
        typed.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    (place / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    process = PROCESSES.Process(target=become_cookiecutter, args=(arguments, place, typed))
    process.start()
    process.join(60)
    if process.exitcode is None:
        process.kill()
        process.join()
        return Done(None, (place / "said").read_text(encoding="utf-8"))
    return Done(process.exitcode, (place / "said").read_text(encoding="utf-8"))


def questions(template: Path) -> dict:
    """The questions and their defaults."""
    context = json.loads((template / "cookiecutter.json").read_text(encoding="utf-8"))
    return {field: default for field, default in context.items() if not field.startswith("_")}


def write_replay(template: Path, folder: Path, answers: dict) -> None:
    """The answers of an earlier run, here edited by hand."""
    context = json.loads((template / "cookiecutter.json").read_text(encoding="utf-8"))
    private = {key: "" for key in context if key.startswith("__")}
    names = {"project_name": "A", "project_slug": "aa", "package_name": "aa"}
    folder.mkdir()
    replay = {"cookiecutter": {**context, **private, **names, **answers}}
    (folder / f"{template.name}.json").write_text(json.dumps(replay), encoding="utf-8")
