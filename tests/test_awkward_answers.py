"""Whatever is answered: a project that parses and holds the answers, or one line that says why not.

The answers are in awkward_answers.py. Each is given to the command line, for the real template.
"""

import ast
import functools
import itertools
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from awkward_answers import ABSOLUTE, ACCEPTED, CHANNELS, INJECTIONS, JINJA, REFUSED
from command_line import Done, cookiecutter, questions
from conftest import TEMPLATE
from cookiecutter.exceptions import FailedHookException
from cookiecutter.generate import generate_context
from cookiecutter.prompt import prompt_for_config
from cookiecutter.utils import create_env_with_context
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import FileSystemLoader
from markdown_it import MarkdownIt
from tiny_template import PROJECT, load

extension = load("local_extensions.py")
BASH, MAKE = shutil.which("bash") or "bash", shutil.which("make") or "make"
FAST_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SHOWING = ("pyproject.toml", "LICENSE", "README.md")
MINE = {"said", "typed", "config.yaml", "replay", "out"}  # what a run may leave, beside the project


def cases(kinds: dict) -> list:
    """Channel and row; the channels take turns."""
    found = []
    for kind, rows in kinds.items():
        for number, row in enumerate(rows):
            answers = row if isinstance(row, dict) else refused_answers(row)
            usable = [channel for channel in CHANNELS if can_carry(channel, answers)]
            if isinstance(row, tuple) and row[0] not in answers:
                usable.remove("replay")  # which derives no names
            channel = usable[number % len(usable)]
            found.append(pytest.param(channel, row, id=f"{kind}-{channel}-{ascii(row)[:40]}"))
    return found


def can_carry(channel: str, answers: dict) -> bool:
    if channel == "replay":
        return True
    texts = list(answers.values())
    if channel == "config":  # a file in UTF-8
        return not any(re.search("[\ud800-\udfff]", str(text)) for text in texts)
    if not all(isinstance(text, str) for text in texts) or "_allow_intel_python" in answers:
        return channel == "key=value" and all(isinstance(text, str) for text in texts)
    if any(re.search("[\0\ud800-\udc7f]", text) for text in texts):
        return False
    if channel == "key=value":
        return True
    # typed: an empty line is the default, a space at the end does not count, and Enter ends a line
    return not any(re.search(r"[\r\n]", text) or text != text.strip() or not text for text in texts)


def refused_answers(row: tuple) -> dict:
    field, answer, _ = row
    return answer if isinstance(answer, dict) and "project_name" in answer else {field: answer}


def injected(text: str) -> dict:
    """The same text as every free answer."""
    names = {} if extension.slug(text) else {"project_slug": "no-letters"}
    return {"project_name": text, "description": text, "author_name": text, **names}


INJECTED = {kind: [injected(text) for text in texts] for kind, texts in INJECTIONS.items()}


@pytest.mark.parametrize(("channel", "answers"), cases(ACCEPTED) + cases(INJECTED))
def test_what_is_accepted_parses_and_is_read_back(tmp_path, channel, answers):
    done = cookiecutter(TEMPLATE, tmp_path, channel, answers)
    assert done.status == 0 and "Traceback" not in done.said, done.said
    [project] = (tmp_path / "out").iterdir()
    nothing_else_happened(tmp_path)
    every_file_parses(project)
    defaults = questions(TEMPLATE)
    if channel == "replay":
        defaults.update(project_name="A", project_slug="aa", package_name="aa")
    holds(project, {**defaults, **answers})


@pytest.mark.parametrize(("channel", "row"), cases(REFUSED))
def test_what_is_refused_is_one_line_and_nothing_is_there(tmp_path, channel, row):
    field, _, says = row
    done = cookiecutter(TEMPLATE, tmp_path, channel, refused_answers(row))
    is_refused(done, field, says, channel)
    assert not (tmp_path / "out").exists()
    nothing_else_happened(tmp_path)


def is_refused(done: Done, field: str, says: str, channel: str) -> None:
    assert done.status == 1, done.said
    lines = done.said.splitlines()
    line = lines[-1]
    if channel == "typed":  # the answer's line break is not in the output
        asked = list(questions(TEMPLATE))
        line = line[line.index(f"{field} ") :]
        following = asked.index(field) + 2  # counted from 1
        assert f"[{following}/{len(asked)}]" not in done.said
        assert "Traceback" not in done.said
    else:
        assert len(lines) == 1, done.said
    assert line.startswith(f"{field} ") and says in line and ". Give " in line and line.isascii()


def nothing_else_happened(place: Path) -> None:
    assert {entry.name for entry in place.iterdir()} <= MINE
    assert not list(place.rglob("canary"))
    assert not ABSOLUTE.exists()


def every_file_parses(project: Path) -> None:
    for path in project.rglob("*"):
        if path.is_file():
            parses(path.name, path.read_text(encoding="utf-8"))


@functools.cache  # most files hold no answer
def parses(name: str, text: str) -> None:
    suffix = Path(name).suffix
    if suffix == ".py":
        ast.parse(text)
    elif suffix == ".toml":
        tomllib.loads(text)
    elif suffix in (".yaml", ".yml"):
        list(yaml.load_all(text, FAST_YAML))
    elif suffix == ".json":
        json.loads(text)
    elif suffix in (".sh", ".sbatch") or text.startswith("#!/bin/"):
        subprocess.run([BASH, "-n"], input=text, encoding="utf-8", check=True)
    elif name == "Makefile":
        subprocess.run([MAKE, "-nf", "-"], input=text, encoding="utf-8", check=True)


def holds(project: Path, answers: dict) -> None:
    """The answers, as the project's folders and files say them."""
    [package] = (project / "src").iterdir()
    # A default that is derived has braces: what it must be stands in the corpus, where it matters.
    for folder, field in ((project, "project_slug"), (package, "package_name")):
        assert folder.name == answers[field] or "{{" in answers[field]
    actions = extension.RULES["github_actions"].choices[str(answers["github_actions"]).lower()]
    assert (project / ".github").exists() is actions
    starter = extension.RULES["starter"].choices[answers["starter"].lower()]
    assert (package / "models" / "gpt.py").exists() is (starter == "language-modeling")
    assert (package / "models" / "mlp.py").exists() is (starter == "image-classification")
    names = {"project_slug": project.name, "package_name": package.name}
    read = {name: (project / name).read_text(encoding="utf-8") for name in SHOWING}
    say(read, {**answers, **names})


def say(files: dict, answers: dict) -> None:
    """The texts of pyproject.toml, LICENSE and README.md hold the answers exactly."""
    metadata = tomllib.loads(files["pyproject.toml"])["project"]
    chosen = extension.RULES["license"].choices[answers["license"].lower()]
    author = {"name": answers["author_name"], "email": answers["author_email"]}
    assert metadata["name"] == answers["project_slug"]
    assert metadata["description"] == answers["description"]
    assert metadata["authors"] == [{key: value for key, value in author.items() if value}]
    assert metadata["license"] == chosen.replace("Proprietary", "LicenseRef-Proprietary")
    assert f"{answers['package_name']}.train:main" in metadata["scripts"].values()
    holder = f"Copyright (c) {answers['author_name']}"
    holder += ". All rights reserved." if chosen == "Proprietary" else ""
    assert (holder in files["LICENSE"].split("\n")) is (chosen != "Apache-2.0")
    shows(files["README.md"], answers["project_name"], answers["description"])


def shows(markdown: str, heading: str, paragraph: str) -> None:
    """The first heading and the text under it are plain text, as typed."""
    tokens = MarkdownIt().parse(markdown)
    wanted = [("h1", heading)] + ([("p", paragraph)] if paragraph else [])
    for opening, inline, (tag, text) in zip(tokens[0::3], tokens[1::3], wanted, strict=False):
        assert opening.tag == tag
        assert [(child.type, child.content) for child in inline.children] == [("text", text)]


@pytest.fixture(scope="module")
def real_files():
    """The files that show free text, and cookiecutter's own way to ask and to render."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TEMPLATE)  # for the extension
        context = generate_context(TEMPLATE / "cookiecutter.json")
        environment = create_env_with_context(context)
        environment.loader = FileSystemLoader(TEMPLATE / PROJECT)
        yield {name: environment.get_template(name) for name in SHOWING}


MARKS = [*"aZ9 \\`*_[]<>&~|$#-+=.()!:\"'{}%@/,;?é日🚀", "&amp;", "&#65;", "<b>", "](x)", "**", "~~"]
MARKS += ["1. ", "- ", "\\u0041", "${", "}}", '"""', "'''", "e\u0301", "a\u200db", "❤\ufe0f"]
NOISE = st.lists(st.sampled_from(MARKS), max_size=12).map("".join)
INJECTION = st.sampled_from([*itertools.chain(*INJECTIONS.values())])
FREE = st.one_of(
    NOISE.map(str.strip), INJECTION, st.tuples(INJECTION, NOISE, INJECTION).map("".join)
)
ANYTHING = st.one_of(FREE, FREE, FREE, st.sampled_from(JINJA), st.text(max_size=30))
ADDRESS = st.one_of(st.just(""), st.from_regex(f"(?i:{extension.EMAIL})", fullmatch=True))


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.fixed_dictionaries(
        {"project_name": FREE, "project_slug": st.sampled_from(["a", "my-net", "2048", "torch"])},
        optional={
            "package_name": st.sampled_from(["a", "my_net"]),
            "description": FREE,
            "author_name": ANYTHING,
            "author_email": ADDRESS,
            "license": st.sampled_from([*extension.LICENSES, "4", "GPL"]),
        },
    )
)
def test_whatever_is_accepted_is_what_the_files_say(real_files, answers):
    context = generate_context(TEMPLATE / "cookiecutter.json", extra_context=answers)
    try:
        project = dict(prompt_for_config(context, no_input=True))
        folder = create_env_with_context(context).from_string(PROJECT).render(cookiecutter=project)
    except FailedHookException as refusal:
        field, *_ = str(refusal).split()
        assert field in extension.RULES and str(refusal).isascii() and "\n" not in str(refusal)
        return
    assert folder == answers["project_slug"]
    files = {name: file.render(cookiecutter=project) for name, file in real_files.items()}
    say(files, {**questions(TEMPLATE), **project, **answers})


def test_what_is_no_question_is_not_checked(tmp_path):
    """cookiecutter drops unknown names silently, and reads its own settings before any of our code."""
    (tmp_path / "typo").mkdir()
    done = cookiecutter(TEMPLATE, tmp_path / "typo", "key=value", {"projekt_name": "Mine"})
    assert done.status == 0 and (tmp_path / "typo" / "out" / "my-lightning-project").is_dir()
    (tmp_path / "own").mkdir()
    done = cookiecutter(TEMPLATE, tmp_path / "own", "key=value", {"_extensions": "x"})
    assert done.status == 1 and "ValueError: x provided for choice variable" in done.said
    nothing_else_happened(tmp_path / "own")


def test_the_corpus_is_as_large_as_it_says():
    rows = [*itertools.chain(*ACCEPTED.values(), *INJECTIONS.values(), *REFUSED.values())]
    assert len(rows) >= 150
    assert {case.values[0] for case in cases(ACCEPTED) + cases(REFUSED)} == set(CHANNELS)
