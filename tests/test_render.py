"""What the template writes, whatever is answered: files that parse, lint clean, and no leftovers."""

import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from command_line import EXCERPT, PROJECT, QUIET, SLUG, contents, cookiecutter, copy_template
from conftest import TEMPLATE, bake, run

SOURCE = TEMPLATE / PROJECT
LONG = "Abcdefghij Klmnopqrst Uvwxyzab"  # 30 letters, and so a package of 30
OPTIONS = {
    "default": {},
    "short": {"project_name": "Abc"},
    "long": {"project_name": LONG},
    "longest": {"project_name": "x" * 50},
    "quotes": {
        "description": """It's "a" \\ <b>_test_</b> # & ${x}: ü""",
        "author_name": 'A "B" \\',
    },
    "no_actions": {"github_actions": "no"},
    "language": {"starter": "language-modeling"},
    "language, long": {"starter": "language-modeling", "project_name": LONG},
    "no_deploy": {"deploy": "no"},
    "Apache-2.0": {"license": "Apache-2.0"},
    "BSD-3-Clause": {"license": "BSD-3-Clause"},
    "Proprietary": {"license": "Proprietary", "author_email": "a@example.org"},
}


@pytest.fixture(scope="module", params=OPTIONS)
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bake(tmp_path_factory.mktemp("rendered"), **OPTIONS[request.param])


def files(project: Path, *patterns: str) -> list[Path]:
    return [path for pattern in patterns for path in project.rglob(pattern) if path.is_file()]


def test_every_file_parses(rendered: Path) -> None:
    for path in files(rendered, "*.py"):
        ast.parse(path.read_text(encoding="utf-8"))
    for path in files(rendered, "*.toml"):
        tomllib.loads(path.read_text(encoding="utf-8"))
    for path in files(rendered, "*.yaml", "*.yml"):
        assert all(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def test_nothing_of_the_template_is_left(rendered: Path) -> None:
    for path in files(rendered, "*"):
        text = path.read_text(encoding="utf-8")
        assert "cookiecutter" not in text.lower()
        assert not re.search(r"(?<!\$)\{\{|\{%|\{#", text), path
        assert "\r" not in text
        assert text == "" or text.endswith("\n")
        assert not text.endswith("\n\n")


def test_lint_and_format_are_clean(rendered: Path) -> None:
    for check in (["check"], ["format", "--check", "--diff"]):
        done = run(sys.executable, "-m", "ruff", *check, "--no-cache", ".", cwd=rendered)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_metadata_hold_the_answers(rendered: Path, request: pytest.FixtureRequest) -> None:
    answers = OPTIONS[request.node.callspec.params["rendered"]]
    project = tomllib.loads((rendered / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == rendered.name
    if "description" in answers:
        assert project["description"] == answers["description"]
        assert project["authors"] == [{"name": answers["author_name"]}]
    if "author_email" in answers:
        assert project["authors"][0]["email"] == answers["author_email"]
    spdx = answers.get("license", "MIT").replace("Proprietary", "LicenseRef-Proprietary")
    assert project["license"] == spdx


def test_unselected_files_are_gone(rendered: Path, request: pytest.FixtureRequest) -> None:
    case = request.node.callspec.params["rendered"]
    assert (rendered / ".github").exists() is (case != "no_actions")
    assert (rendered / "deploy").exists() is (case != "no_deploy")
    assert (rendered / ".dockerignore").exists() is (case != "no_deploy")
    readme = (rendered / "README.md").read_text(encoding="utf-8")
    assert ("GitHub runs" in readme) is (case != "no_actions")


def starter_files(starter: str, package: str) -> dict[str, bytes]:
    files = contents(SOURCE / "starters" / starter).items()
    return {path.replace("{{cookiecutter.package_name}}", package): text for path, text in files}


def test_only_what_belongs_to_the_starter_is_there(
    rendered: Path, request: pytest.FixtureRequest
) -> None:
    chosen, other = "image-classification", "language-modeling"
    words = r"\bgpt|trigram|tokenizer"  # what only the other starter speaks of
    if "starter" in OPTIONS[request.node.callspec.params["rendered"]]:
        chosen, other = other, chosen
        words = r"data[./]digits|convnet|[Cc]onfusion|sklearn|\bPIL\b"
    (package,) = (path.name for path in (rendered / "src").iterdir())
    wanted = {path for path in starter_files(chosen, package) if "__pycache__" not in path}
    there = contents(rendered)
    assert len(wanted) > 10 and wanted <= set(there)
    assert not (set(starter_files(other, package)) - wanted) & set(there)
    assert not (rendered / "starters").exists()
    for path in files(rendered, "*.py", "*.yaml", "*.md", "*.toml"):
        text = path.read_text(encoding="utf-8")
        # doctor loads whatever may be installed
        assert path.name == "torch_probe.py" or not re.search(words, text), path


def test_of_two_files_with_one_path_the_starters_is_there(tmp_path: Path) -> None:
    template = copy_template(tmp_path / "template", EXCERPT)
    source = template / PROJECT
    (source / "starters" / "language-modeling" / "README.md").write_text("GPT\n")
    for starter, readme in (("language-modeling", "GPT\n"), ("image-classification", "# My ")):
        done = cookiecutter(template, *QUIET, f"starter={starter}", "-o", starter, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        text = (tmp_path / starter / SLUG / "README.md").read_text(encoding="utf-8")
        assert text.startswith(readme)


def test_what_a_person_added_stays_when_the_template_is_baked_over_it(tmp_path: Path) -> None:
    template = copy_template(tmp_path / "template", EXCERPT)
    assert cookiecutter(template, *QUIET, cwd=tmp_path).returncode == 0
    project = tmp_path / SLUG
    mine = [
        *(
            ".github/workflows/mine.yml",
            "deploy/mine.sh",
            "starters/mine/model.py",
            "starters/mine.py",
        ),
        *(
            "starters/language-modeling/mine.py",
            "src/my_lightning_project/models/mine.py",
            "mine.py",
        ),
    ]
    for name in mine:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("mine\n")
    before = contents(project)
    answers = ("github_actions=no", "deploy=no", "starter=language-modeling")
    done = cookiecutter(template, *QUIET, "--overwrite-if-exists", *answers, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = contents(project)
    assert all(after[name] == b"mine\n" for name in mine)
    deleted = set(before) - set(after)
    assert {name.split("/")[0] for name in deleted} == {".github", "deploy"}
    assert "src/my_lightning_project/models/gpt.py" in after


def test_sources_hold_no_jinja_so_they_are_linted_as_they_are() -> None:
    for path in SOURCE.rglob("src/**/*.py"):
        assert not re.search(r"\{\{|\{%|\{#", path.read_text(encoding="utf-8")), path


def test_every_text_file_is_opened_with_an_encoding() -> None:
    """Otherwise Windows reads the metrics of `self.log("val/précision", ...)` in another one."""
    rule = ("--isolated", "--preview", "--select", "PLW1514", "--no-cache")
    done = run(sys.executable, "-m", "ruff", "check", *rule, *SOURCE.rglob("src"))
    assert done.returncode == 0, done.stdout


def test_configs_are_valid_yaml_before_they_are_rendered() -> None:
    for path in SOURCE.rglob("src/**/*.yaml"):
        yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_hook_for_yaml_takes_files_with_several_documents() -> None:
    hooks = yaml.safe_load((SOURCE / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (check,) = [
        one for repo in hooks["repos"] for one in repo["hooks"] if one["id"] == "check-yaml"
    ]
    files = SOURCE.rglob("*.yaml")
    assert any("\n---\n" in path.read_text(encoding="utf-8") for path in files)
    assert "--allow-multiple-documents" in check["entry"]


def test_pre_commit_and_the_metadata_name_one_ruff() -> None:
    hooks = yaml.safe_load((SOURCE / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    pinned = {
        dependency
        for repo in hooks["repos"]
        for hook in repo["hooks"]
        for dependency in hook.get("additional_dependencies", [])
        if dependency.startswith("ruff")
    }
    (ruff,) = pinned
    assert f'"{ruff}"' in (SOURCE / "pyproject.toml").read_text(encoding="utf-8")
    assert ruff in (TEMPLATE / "constraints.txt").read_text(encoding="utf-8")


def test_no_lightning_of_the_stolen_release_can_be_installed() -> None:
    assert '"lightning>=2.6.6,<3"' in (SOURCE / "pyproject.toml").read_text(encoding="utf-8")


def test_there_are_at_most_ten_questions_and_labels_for_each_and_its_choices() -> None:
    context = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
    questions = {name: value for name, value in context.items() if not name.startswith("_")}
    prompts = context["__prompts__"]
    assert len(questions) <= 10 and set(questions) == set(prompts)
    for name, value in questions.items():
        if isinstance(value, list):
            assert set(prompts[name]) == {"__prompt__", *value}
    starters = [path.name for path in (SOURCE / "starters").iterdir()]
    assert sorted(starters) == sorted(questions["starter"])


WORKFLOWS = [
    *(TEMPLATE / ".github" / "workflows").glob("*.yml"),
    *(SOURCE / ".github" / "workflows").glob("*.yml"),
]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_actions_by_commit_and_may_only_read(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    used = re.findall(r"uses: (\S+)", text)
    assert used
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in used)
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}


def test_the_template_checks_out_on_every_system() -> None:
    """Windows: no reserved names, nothing that differs by case alone, no links, no odd characters."""
    paths = [path for path in SOURCE.rglob("*") if "__pycache__" not in path.parts]
    reserved = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}
    assert not [path for path in paths if path.stem.lower() in reserved]
    assert not [path for path in paths if path.is_symlink()]
    assert not [path for path in paths if re.search(r'[<>:"|?*\\]|[. ]$', path.name)]
    assert len({str(path).lower() for path in paths}) == len(paths)


def test_git_keeps_secrets_and_runs_out() -> None:
    ignored = (SOURCE / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {".env", "/runs/", "/data/"} <= set(ignored)
