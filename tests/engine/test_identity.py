"""A run's folder follows from what decides its weights: code, config, seed and data."""

import importlib
import json
import logging
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import run
from image_project.engine.run import open_run, run_folder

from .small_runs import Compose

identity: Any = importlib.import_module("image_project.engine.run.identity")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("trainer.accelerator=cpu", True),
        ("+data.num_workers=1", True),
        ("logger=tensorboard", True),
        ("show=progress", True),
        ("fast_loop=false", True),
        ("+rehearse.skip.mps=why", True),
        ("trainer.devices=2", True),
        ("trainer.strategy=fsdp", True),
        ("trainer.max_epochs=31", False),  # the cosine is as long as the training
        ("trainer.precision=bf16-mixed", False),
        ("callbacks=best", False),
        ("seed=1", False),
        ("optimizer.lr=0.5", False),
        ("data.batch_size=16", False),
        ("data.global_batch_size=32", False),
    ],
)
def test_only_what_decides_the_weights_decides_the_folder(
    config: Compose, monkeypatch: pytest.MonkeyPatch, change: str, same: bool
) -> None:
    monkeypatch.setattr(identity, "source_code", lambda package: [])  # which takes a while to read

    assert (run_folder(config(change)).path == run_folder(config()).path) is same


def test_a_training_that_is_only_longer_is_the_same_run(config: Compose) -> None:
    constant = "scheduler=constant"
    longer = config(constant, "trainer.max_epochs=31")
    assert run_folder(longer).path == run_folder(config(constant)).path


DECORATED = '''
# A comment.
"""A docstring of the module."""

x = ( 1,
      "two" 'parts', )
class Loss :
    """A docstring."""
    weight = u"heavy"   # why
    def forward( self , a , b = None ) :
        """Another."""
        del(a)
        return  (a+ b)
async def later():
    "One more."
'''
PLAIN = """
x = (1, "twoparts")
class Loss:
    weight = "heavy"
    def forward(self, a, b=None):
        del a
        return a + b
async def later():
    pass
"""


@pytest.mark.parametrize(
    ("file", "before", "after", "same"),
    [
        ("models/new.py", None, "x = 1", False),
        ("losses/new.py", None, "x = 1", False),  # a room of the owner's
        ("engine/trainer.py", None, "x = 1", False),
        ("models/new.py", "x = 1", "x = 2", False),
        ("models/new.py", "x = '1'", "x = 1", False),
        ("models/new.py", "x = None", "x = []", False),
        ("models/new.py", "def f(a): return a", "def f(a): 'text'; return a", True),
        ("models/new.py", "x = 1; 'no docstring'", "x = 1", False),
        ("models/new.py", PLAIN.replace("    pass\n", "    'x'\n"), DECORATED, True),
        ("models/new.py", "x = 1\n", "\ufeff# by another editor\r\nx = 1\r\n", True),
        ("models/new.py", "half a li", "half a line", False),  # being edited while a run starts
        ("models/.new.py", None, "x = 1", True),
        ("models/.ipynb_checkpoints/new.py", None, "x = 1", True),
        ("models/__MACOSX/._new.py", None, "x = 1", True),
        ("__MACOSX/new.py", None, "x = 1", True),
        ("models/.#new.py", None, "x = 1", True),
        ("models/#new.py#", None, "x = 1", True),
        ("models/new.py~", None, "x = 1", True),
        ("models/new (Ann's conflicted copy 2026-01-02).py", None, "x = 1", True),
        ("models/new.sync-conflict-20260102-030405-ABCDEFG.py", None, "x = 1", True),
        ("models/new (1).py", None, "x = 1", True),
        ("models/new 2.py", None, "x = 1", True),
        ("tools/doctor/new.py", None, "x = 1", True),
        ("tools/runs.py", None, "x = 1", True),
        ("configs/model/new.yaml", None, "x: 1", True),  # its values count where they are used
    ],
)
def test_code_decides_but_for_comments_docstrings_formatting_and_tools(
    tmp_path: Path, file: str, before: str | None, after: str, same: bool
) -> None:
    source = tmp_path / file
    source.parent.mkdir(parents=True)
    if before is not None:
        source.write_bytes(before.encode())
    old = [*identity.source_code(tmp_path)]
    source.write_bytes(after.encode())
    assert ([*identity.source_code(tmp_path)] == old) is same


def test_a_change_of_code_makes_a_new_run(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_folder(config()).path
    copy = tmp_path / "image_project"
    shutil.copytree(Path(identity.__file__).parents[2], copy)
    monkeypatch.setattr(identity, "__file__", str(copy / "engine" / "run" / "identity.py"))
    assert run_folder(config()).path == before
    (copy / "tasks" / "classification.py").write_text("x = 1")
    assert run_folder(config()).path != before


# What one Python writes or reads in another way than the next: empty fields, f-strings, letters
# that are newer than the older one's tables.
TRICKY = """
def f(a, /, b, *c, d: "int" = 1, **e) -> None: ...
class C(metaclass=type): x: int
print(f"{f(1)!r:>{2 + 3}} {1 = } a" "b" f"{{}}", "\U0001fae8 \u1c89", 1e400, -0.0, 1j, b"\\xff", ...)
match [1, {"a": 2}]:
    case [1, {"a": x, **rest}] if x: lambda: (yield)
try: pass
except* ValueError as error: raise error from None
{**{}, "a": None}, [*[]], x[1:, ...]
"""
EXTRACTED = """
import ast, functools, json, sys
from pathlib import Path
functions = [
    node for node in ast.parse(Path(sys.argv[1]).read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name in ("essence", "_text")
]
space = {"ast": ast, "functools": functools, "Any": object}
exec(compile(ast.Module(functions, []), "identity.py", "exec"), space)
print(json.dumps([space["essence"](source) for source in json.load(sys.stdin)]))
"""


def interpreter(version: str) -> str | None:
    """Find a Python of this version, which needs no packages."""
    known = [shutil.which(f"python{version}")]
    known += map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    name = "import sys; print('%d.%d' % sys.version_info[:2])"
    found = (
        python for python in known if python and run(python, "-c", name).stdout.strip() == version
    )
    return next(found, None)


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_identity_is_the_same_on_every_python(version: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    package = Path(identity.__file__).parents[2]
    sources = [path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))]
    done = subprocess.run(
        [python, "-c", EXTRACTED, identity.__file__],
        input=json.dumps([*sources, TRICKY]),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [identity.essence(source) for source in [*sources, TRICKY]]


def unfinished(path: Path, *, finished: str = "") -> None:
    (path / "checkpoints").mkdir(parents=True)
    (path / "checkpoints" / "step_000000005.ckpt").touch()
    if finished:
        (path / finished).write_text("{}")


def test_an_unfinished_run_of_the_same_name_is_mentioned_with_how_to_continue_it(
    config: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_run(config())
    runs, here = opened.folder.path.parent, opened.folder.path
    name = here.name.rpartition("-")[0]
    unfinished(runs / f"{name}-0123abcd")
    unfinished(runs / f"{name}-11111111", finished="metrics.json")
    unfinished(runs / f"{name}-22222222", finished="pruned.json")
    unfinished(runs / "other-33333333")
    here.mkdir()
    with caplog.at_level(logging.INFO):
        opened.start()
    told = f"add ckpt_path={runs / f'{name}-0123abcd'}/checkpoints/step_000000005.ckpt"
    (line,) = [line for line in caplog.messages if "ckpt_path=" in line]
    assert told in line
    # One that resumes, or begins where it was told to, has nothing to be told.
    caplog.clear()
    unfinished(here)
    open_run(config()).start()
    assert "ckpt_path=" not in caplog.text
