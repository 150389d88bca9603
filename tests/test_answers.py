"""Nothing given as an answer breaks a project: it is read back exactly, or refused in one line."""

import email.headerregistry
import html
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib

import jinja2
import pytest
import yaml
from cookiecutter.exceptions import FailedHookException
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tiny_template import PROJECT, ROOT, bake, created, load, make_template, read_back, write_replay

extension = load("local_extensions.py")
LICENSES = {
    "MIT": "MIT License",
    "Apache-2.0": "Apache License",
    "BSD-3-Clause": "BSD 3-Clause License",
    "Proprietary": "Copyright (c) Zoë Ö'Neil. All rights reserved.",
}


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("answers") / "tiny")


def assert_refused(done, field: str, place) -> None:
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stdout
    assert len(lines) == 1, done.stdout
    assert lines[0].startswith(f"{field} ") and ". Give " in lines[0] and lines[0].isascii()
    assert created(place) == []


@pytest.mark.parametrize("hooks", ["yes", "no"])
@pytest.mark.parametrize(
    ("field", "answer"),
    [
        ("project_slug", "a/b"),
        ("project_slug", "../out/x"),
        ("description", "a\0b"),
        ("description", "\ud800"),
        ("author_name", "{{ cookiecutter }}"),
        ("license", "GPL"),
        ("starter", "reinforcement-learning"),
        ("github_actions", "maybe"),
    ],
    ids=ascii,
)
def test_a_replay_is_checked_too(template, tmp_path, field, answer, hooks):
    write_replay(template, tmp_path, **{field: answer})
    done = bake(template, tmp_path, "--replay", f"--accept-hooks={hooks}")
    assert_refused(done, field, tmp_path)


def test_a_good_replay_makes_the_project(template, tmp_path):
    write_replay(template, tmp_path, description="It's {fine} \\")
    assert bake(template, tmp_path, "--replay").returncode == 0
    assert read_back(tmp_path / "out" / "a")["description"] == "It's {fine} \\"


def test_a_user_config_is_read_back_exactly(template, tmp_path):
    mine = {"author_name": "Ann 'A' Ö", "license": "Apache-2.0", "project_name": 2048}
    bake(template, tmp_path, config=mine)
    project = read_back(tmp_path / "out" / "2048")
    assert project == {**project, **mine, "project_name": "2048", "package_name": "project_2048"}


@pytest.mark.parametrize("answer", ["{{ 7 * 7 }}", "{% raw %}", "a {# b", "A\u202eB"])
def test_a_bad_answer_is_refused_before_the_next_question(template, tmp_path, answer):
    done = bake(template, tmp_path, typed=f"{answer}\n")
    assert done.returncode == 1
    assert "[1/10]" in done.stdout and "[2/10]" not in done.stdout
    assert "Traceback" not in done.stdout and created(tmp_path) == []


def test_typed_answers_make_the_project_they_say(template, tmp_path):
    done = bake(template, tmp_path, typed='My Nets\n\nnets\n2\nIt\'s \\"x\\"\nZoë\n\n4\nno\nno\n')
    assert done.returncode == 0, done.stdout
    project = read_back(tmp_path / "out" / "my-nets")
    assert project["package_name"] == "nets"
    assert project["description"] == 'It\'s \\"x\\"'
    assert project["license"] == "Proprietary"
    assert not (tmp_path / "out" / "my-nets" / ".github").exists()


def test_unselected_files_are_deleted_and_the_next_steps_are_ascii(template, tmp_path):
    done = bake(
        template, tmp_path, "github_actions=no", env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0 and "make train" in done.stdout and done.stdout.isascii()
    assert not (tmp_path / "out" / "my-lightning-project" / ".github").exists()


def test_workflows_are_copied_as_they_are(template, tmp_path):
    bake(template, tmp_path)
    project = tmp_path / "out" / "my-lightning-project"
    workflow = project / ".github" / "workflows" / "ci.yml"
    assert workflow.read_bytes() == b"echo: ${{ github.ref }}\n"


@pytest.mark.parametrize("license", LICENSES)
def test_each_license_is_whole_and_has_no_year(license):
    text = (ROOT / PROJECT / "LICENSE").read_text(encoding="utf-8")
    answers = {"license": license, "author_name": "Zoë Ö'Neil"}
    rendered = jinja2.Environment(keep_trailing_newline=True).from_string(text)
    rendered = rendered.render(cookiecutter=answers)
    assert rendered.lstrip().startswith(LICENSES[license])
    assert rendered.endswith(".\n") and not rendered.startswith("\n")
    assert ("Zoë Ö'Neil" in rendered) == (license != "Apache-2.0")
    assert not re.search(r"20[0-9]{2}", rendered.replace("January 2004", ""))


def test_choices_of_the_checks_are_those_of_the_questions():
    context = json.loads((ROOT / "cookiecutter.json").read_text())
    for field, names in (("license", extension.LICENSES), ("starter", extension.STARTERS)):
        asked = re.findall("^ *([0-9]) - ([^:]+):", context["__prompts__"][field], re.MULTILINE)
        assert tuple(name for _, name in asked) == names
        assert tuple(extension.RULES[field].choices[number] for number, _ in asked) == names
    questions = [key for key in context if not key.startswith("_") or key == "_allow_intel_python"]
    assert list(extension.RULES) == questions
    for field, rule in extension.RULES.items():
        assert rule.choices is None or context[field].lower() in rule.choices


def test_no_package_can_shadow_the_standard_library_of_this_python():
    public = {name for name in sys.stdlib_module_names if re.fullmatch("[a-z][a-z0-9_]*", name)}
    assert public <= extension.TAKEN


def test_no_package_is_shadowed_by_what_a_project_installs():
    """In site-packages they come before an editable project; as a distribution, pip mixes them up."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {name.lower() for name in re.findall("^([A-Za-z0-9._-]+)==", text, re.MULTILINE)}
    modules = importlib.metadata.packages_distributions().items()
    names = pinned | {name for name, dists in modules if pinned & {dist.lower() for dist in dists}}
    names = {name for name in names if re.fullmatch("[a-z][a-z0-9_.-]*", name)}
    assert len(names) > 50
    assert {name for name in names if not extension.taken(name.replace(".", "-"))} == set()


def test_an_update_is_rendered_with_the_filters_of_the_new_template(tmp_path):
    template = make_template(tmp_path / "tiny")
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org"]
    cruft = [sys.executable, "-m", "cruft"]

    def run(*command, cwd):
        subprocess.run(command, cwd=cwd, check=True, capture_output=True)

    run("git", "init", "-q", cwd=template)
    run("git", "add", ".", cwd=template)
    run(*git, "commit", "-qm", "old", cwd=template)
    run(*cruft, "create", str(template), "--no-input", "--default-config", cwd=tmp_path)
    project = tmp_path / "my-lightning-project"
    run("git", "init", "-q", cwd=project)
    run("git", "add", ".", cwd=project)
    run(*git, "commit", "-qm", "mine", cwd=project)

    source = template / "local_extensions.py"
    source.write_text(source.read_text().replace("quoted, markdown)", "quoted, markdown, ascii)"))
    with (template / PROJECT / "a.toml").open("a") as file:
        file.write("new = {{ cookiecutter.project_name | ascii }}\n")
    run(*git, "commit", "-qam", "new", cwd=template)
    run(*cruft, "update", "--skip-apply-ask", cwd=project)

    assert "new = 'My Lightning Project'\n" in (project / "a.toml").read_text()
    assert not list(project.rglob("*.rej"))


@settings(max_examples=300, deadline=None, database=None)
@given(st.text(st.characters(), max_size=20))
def test_any_text_is_refused_or_reads_back_exactly(text):
    try:
        extension.check_answers({"description": text})
    except FailedHookException as refusal:
        assert str(refusal).isascii() and "\n" not in str(refusal)
        return
    literal = extension.quoted(text)
    assert tomllib.loads(f"x = {literal}")["x"] == text
    assert yaml.safe_load(f"x: {literal}")["x"] == text
    assert json.loads(literal) == text


@settings(max_examples=300, deadline=None, database=None)
@given(st.text("aZ9 \\`*_[]<>&~|$#-+=.()!:\"'{}/é", min_size=1, max_size=12))
def test_text_in_markdown_shows_as_it_was_typed(text):
    text = text.strip() or "a"
    shown = MarkdownIt().render(extension.markdown(text))
    assert html.unescape(shown) == f"<p>{text}</p>\n"


@settings(max_examples=300, deadline=None, database=None)
@given(st.text(max_size=80))
def test_derived_names_are_good_or_the_slug_is_empty(name):
    slug = extension.slug(name)
    if slug:
        package = extension.package(slug)
        assert extension.check_answers({"project_slug": slug, "package_name": package}) == ""


@given(st.from_regex(f"(?i:{extension.EMAIL})", fullmatch=True))
def test_an_accepted_address_is_one_that_packaging_accepts(address):
    if not extension.fault(address, extension.RULES["author_email"]):
        email.headerregistry.Address(display_name='A "B", C', addr_spec=address)


def test_a_second_bake_without_actions_keeps_workflows_that_a_person_added(template, tmp_path):
    bake(template, tmp_path)
    workflows = tmp_path / "out" / "my-lightning-project" / ".github" / "workflows"
    (workflows / "mine.yml").write_text("mine")
    done = bake(template, tmp_path, "--overwrite-if-exists", "github_actions=no")
    assert done.returncode == 0, done.stdout
    assert [path.name for path in workflows.iterdir()] == ["mine.yml"]
