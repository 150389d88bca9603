"""What a README shows: files to write and commands to give, and a quick way to give them.

    python readme.py PACKAGE < commands.json

Gives each command, a list of words after `python -m PACKAGE`, in a fork of one process that has
imported PyTorch, which takes seconds. Prints the commands that failed, and their output.
"""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

Command = list[str]


def section(readme: str, title: str) -> str:
    (body,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", readme, re.DOTALL | re.MULTILINE)
    return str(body)


def written_files(readme: str) -> dict[str, str]:
    """Return the files that a README shows: the names in a text, then a code block for each."""
    files: dict[str, str] = {}
    names: list[str] = []
    parts = re.split(r"^```(\w+)\n(.*?)^```$", section(readme, "Make it yours"), flags=re.S | re.M)
    for text, kind, code in zip(parts[::3], [*parts[1::3], ""], [*parts[2::3], ""], strict=True):
        names += re.findall(r"`([a-z_/]+\.(?:py|yaml))`", text)
        if kind in ("python", "yaml"):
            files[names.pop(0)] = code
    assert not names, names
    return files


def commands(readme: str, title: str, package: str) -> list[Command]:
    """Return the commands of a section, without `python -m PACKAGE`."""
    lines = re.findall(rf"^python -m {package} ([^#\n]+)", section(readme, title), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def extend(project: Path, folder: Path) -> Path:
    """Copy a project into `folder`, and write the files that its README shows."""
    extended = folder / project.name
    shutil.copytree(project, extended, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    package = extended / "src" / project.name.replace("-", "_")
    for name, text in written_files((project / "README.md").read_text(encoding="utf-8")).items():
        assert not (package / name).exists(), name
        (package / name).write_text(text, encoding="utf-8")
    return extended


def give(package: str, given: list[Command], *, cwd: Path, **env: str) -> str:
    """Give commands one after the other; return what those that failed have said."""
    one_process = [sys.executable, __file__, package]
    if sys.platform == "linux":
        done = subprocess.run(
            one_process,
            input=json.dumps(given),
            cwd=cwd,
            env={**os.environ, **env},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        return done.stdout + done.stderr
    failed = ""
    for words in given:
        done = subprocess.run(
            [sys.executable, "-m", package, *words],
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env={**os.environ, **env},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        if done.returncode:
            failed += f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return failed


def forked(package: str, words: Command) -> int:
    """Give a command in a fork; return its exit status. Its output goes to output.txt."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        output = os.open("output.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["command", *words]
        importlib.import_module(f"{package}.__main__").main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main(package: str) -> None:
    importlib.import_module(f"{package}.engine.trainer")
    for words in json.load(sys.stdin):
        if status := forked(package, words):
            print(
                f"{words}: {status}\n{Path('output.txt').read_text(encoding='utf-8')}", flush=True
            )


if __name__ == "__main__":
    main(sys.argv[1])
