"""Whatever is answered: a project that parses and holds the answers, or one line that says why not.

The answers are in awkward_answers.py.
"""

import email.headerregistry
import html
import importlib.metadata
import io
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import awkward_answers as corpus
import pytest
import yaml
from command_line import (
    CHANNELS,
    DEFAULTS,
    EXCERPT,
    QUESTIONS,
    assert_refused,
    contents,
    cookiecutter,
    copy_template,
    give,
    load,
)
from conftest import TEMPLATE
from cookiecutter.cli import main
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

extension = load("local_extensions")
LICENSES = {
    "MIT": "MIT License",
    "Apache-2.0": "Apache License",
    "BSD-3-Clause": "BSD 3-Clause License",
    "Proprietary": "Copyright (c) ",
}
Generate = Callable[[str, dict], Path]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_template(tmp_path_factory.mktemp("answers") / "template", EXCERPT)


def usable(answers: dict) -> list[str]:
    """The channels that can carry these answers. Rows take them in turns."""
    given = [answer for name, answer in answers.items() if name not in corpus.CHOICES]
    channels = ["replay"]
    if all(isinstance(answer, str) for answer in given):
        channels.append("key=value")
        if all(x and x == x.strip() and not re.search("[\r\n]", x) for x in given):
            channels.append("typed")
    if not any(re.search("[\ud800-\udfff]", str(answer)) for answer in given):  # a file in UTF-8
        channels.append("config")
    return channels


@pytest.fixture
def generate(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Generate]:
    """Run cookiecutter's command line in this process, and check that nothing else happened."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    monkeypatch.syspath_prepend(template)  # pytest may have this repository on the path
    for module in ("local_extensions", "local_machine"):
        monkeypatch.delitem(sys.modules, module, raising=False)

    def generate(channel: str, answers: dict) -> Path:
        words, typed = give(answers, channel)
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        main([str(template), *words], standalone_mode=False)
        (project,) = Path("out").iterdir()
        return project

    yield generate
    assert {entry.name for entry in tmp_path.iterdir()} <= {"config.yaml", "replay", "out"}
    assert not Path(corpus.ABSOLUTE).exists()


GOOD = [
    *({"project_name": name.split(" → ")[0]} for name in corpus.NAMES),
    *corpus.ACCEPTED,
    # A text without a letter or digit gives no slug.
    *(
        {
            **dict.fromkeys(corpus.FREE_TEXT, text),
            "project_slug": extension.slug(text) or "no-letters",
        }
        for text in corpus.INJECTIONS
    ),
]


@pytest.mark.parametrize(
    ("turn", "answers"), [*enumerate(GOOD)], ids=lambda value: ascii(value)[:50]
)
def test_what_is_accepted_parses_and_is_read_back(
    generate: Generate, turn: int, answers: dict
) -> None:
    channels = usable(answers)
    project = generate(channels[turn % len(channels)], answers)
    names = {"project_slug": project.name, "package_name": next((project / "src").iterdir()).name}
    holds(project, {**DEFAULTS, **names, **answers})


def holds(project: Path, answers: dict) -> None:
    """The folders, pyproject.toml, LICENSE and README.md hold the answers exactly."""
    files = {path: text.decode("utf-8") for path, text in contents(project).items()}
    for question, file in (
        ("github_actions", ".github/workflows/ci.yml"),
        ("deploy", "deploy/slurm.sbatch"),
    ):
        assert (file in files) is answers[question]
    models = f"src/{answers['package_name']}/models"
    language = answers["starter"] == "language-modeling"
    assert (f"{models}/gpt.py" in files, f"{models}/mlp.py" in files) == (language, not language)
    assert not (project / "starters").exists()

    metadata = tomllib.loads(files["pyproject.toml"])["project"]
    author = {"name": answers["author_name"], "email": answers["author_email"]}
    assert metadata["name"] == answers["project_slug"]
    assert metadata["description"] == answers["description"]
    assert metadata["authors"] == [{key: value for key, value in author.items() if value}]
    assert metadata["license"] == answers["license"].replace("Propr", "LicenseRef-Propr")

    license = files["LICENSE"].replace("January 2004", "")
    holder = f"Copyright (c) {answers['author_name']}"
    assert license.lstrip().startswith(LICENSES[answers["license"]]) and license.endswith(".\n")
    assert (holder in license) is (answers["license"] != "Apache-2.0")
    assert not re.search(r"20[0-9]{2}", license.replace(holder, ""))
    assert not license.startswith("\n")

    heading, paragraph = [
        token for token in MarkdownIt().parse(files["README.md"]) if token.children
    ][:2]
    assert files["README.md"].startswith("# ") and text_of(heading) == answers["project_name"]
    assert not answers["description"] or text_of(paragraph) == answers["description"]


def text_of(inline: Token) -> str:
    """The text of a heading or a paragraph, which must have no markup."""
    children = inline.children or []
    assert {child.type for child in children} == {"text"}
    return "".join(child.content for child in children)


@pytest.mark.parametrize("row", [row for row in corpus.NAMES if " → " in row])
def test_a_folder_and_a_package_are_derived_from_the_name(row: str) -> None:
    name, slug = row.split(" → ")
    assert extension.slug(name) == slug
    package = slug.replace("-", "_")
    assert extension.package(slug) == (f"project_{package}" if slug[0].isdigit() else package)


@pytest.mark.parametrize(
    ("question", "answers", "says"), corpus.REFUSED, ids=lambda value: ascii(value)[:30]
)
def test_what_is_refused_is_one_line_and_nothing_is_there(
    generate: Generate, question: str, answers: list, says: str
) -> None:
    for turn, answer in enumerate(answers):
        # cookiecutter itself checks a choice, except in a replay.
        channels = ["replay"] if question in corpus.CHOICES else usable({question: answer})
        is_refused(generate, channels[turn % len(channels)], {question: answer}, question, says)


def is_refused(generate: Generate, channel: str, answers: dict, question: str, says: str) -> None:
    with pytest.raises(SystemExit) as refusal:
        generate(channel, answers)
    line = str(refusal.value.code)
    assert line.startswith(f"{question} ") and says in line and ". Give " in line
    assert line.isascii() and "\n" not in line
    assert not Path("out").exists()


@pytest.mark.parametrize("name", corpus.NAMES_WITHOUT_A_LETTER, ids=ascii)
def test_a_name_without_a_letter_needs_a_slug(generate: Generate, name: str) -> None:
    is_refused(generate, "key=value", {"project_name": name}, "project_slug", "is empty")


@pytest.mark.parametrize("question", corpus.CHOICES)
def test_a_wrong_word_for_a_choice_makes_no_project(generate: Generate, question: str) -> None:
    """cookiecutter's own message is good enough, but it lets some values of a config pass."""
    boolean = isinstance(QUESTIONS[question], bool)
    for word in corpus.NO_CHOICES:
        if not (boolean and word == "0"):
            with pytest.raises(ValueError, match=re.escape(f"{word} provided for")):
                generate("key=value", {question: word})
    for answer in (None, 1, {"a": "b"}) if boolean else ():
        is_refused(generate, "config", {question: answer}, question, "is ")


@pytest.mark.parametrize("hooks", ["yes", "no"])
@pytest.mark.parametrize("channel", CHANNELS)
def test_a_refusal_is_one_line_on_stderr(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channel: str, hooks: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words, typed = give({"project_name": "{{ 7 * 7 }}"}, channel)
    done = cookiecutter(template, *words, f"--accept-hooks={hooks}", typed=typed)
    assert_refused(done, "project_name contains {{, which templates run as code. Give ")
    assert "[2/10]" not in done.stdout  # refused before the next question
    assert not Path("out").exists()


def test_no_answer_opens_the_door_for_another(generate: Generate) -> None:
    """The text that names the project's folder does not end the checks when it is an answer."""
    answers = {"description": "{{cookiecutter.project_slug}}", "author_name": corpus.JINJA[-1]}
    is_refused(generate, "key=value", answers, "description", "run as code")


def test_typed_answers_make_the_project_they_say(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answers = {"project_name": "My Nets", "package_name": "nets", "author_name": "Zoë"}
    answers |= {"starter": "language-modeling", "license": "Proprietary", "deploy": "n"}
    words, typed = give(answers, "typed")
    done = cookiecutter(template, *words, typed=typed)
    assert done.returncode == 0 and "[10/10]" in done.stdout, done.stderr
    holds(Path("out/my-nets"), {**DEFAULTS, **answers, "project_slug": "my-nets", "deploy": False})


def test_no_package_is_shadowed_by_what_a_project_installs() -> None:
    """In site-packages they come before an editable project; as a distribution, pip mixes them up."""
    text = (TEMPLATE / "constraints.txt").read_text(encoding="utf-8")
    pinned = {name.lower() for name in re.findall("^([A-Za-z0-9._-]+)==", text, re.MULTILINE)}
    modules = importlib.metadata.packages_distributions().items()
    names = pinned | {name for name, dists in modules if pinned & {dist.lower() for dist in dists}}
    names = {name for name in names if re.fullmatch("[a-z][a-z0-9_.-]*", name)}
    assert len(names) > 50
    assert {name for name in names if not extension.is_taken(name.replace(".", "-"))} == set()
    assert {"comet_ml", "mlflow", "s3fs", "tokenizers", "wandb", "scikit_learn"} <= extension.TAKEN


FUZZ = settings(max_examples=300, deadline=None, database=None)


@FUZZ
@given(st.text(st.characters(), max_size=20))
def test_any_text_is_refused_or_reads_back_exactly(text: str) -> None:
    try:
        extension.check({"description": text})
    except SystemExit as refusal:
        assert str(refusal).isascii() and "\n" not in str(refusal)
        return
    literal = extension.quoted(text)
    assert tomllib.loads(f"x = {literal}")["x"] == text
    assert yaml.safe_load(f"x: {literal}")["x"] == text
    assert json.loads(literal) == text


MARKS = [
    *"aZ9 \\`*_[]<>&~|$#-+=.()!:\"'{}%@/,;?é日🚀",
    "&amp;",
    "<b>",
    "](x)",
    "1. ",
    "- ",
    "${",
    "~~",
]


@FUZZ
@given(st.lists(st.sampled_from(MARKS), min_size=1, max_size=12).map("".join))
def test_text_in_markdown_shows_as_it_was_typed(text: str) -> None:
    text = text.strip() or "a"
    escaped = extension.markdown(text)
    shown = MarkdownIt().render(f"# {escaped}\n\n{escaped}\n")
    assert html.unescape(shown) == f"<h1>{text}</h1>\n<p>{text}</p>\n"


@FUZZ
@given(st.text(max_size=80))
def test_derived_names_are_good_or_the_slug_is_empty(name: str) -> None:
    try:
        slug = extension.slug(name)
    except SystemExit:
        return
    if slug:
        package = extension.package(slug)
        assert extension.check({"project_slug": slug, "package_name": package}) == ""


@settings(FUZZ, max_examples=50)
@given(st.from_regex(f"(?i:{extension.EMAIL})", fullmatch=True))
def test_an_accepted_address_is_one_that_packaging_accepts(address: str) -> None:
    if not extension.fault(extension.RULES["author_email"], address):
        email.headerregistry.Address(display_name='A "B", C', addr_spec=address)
