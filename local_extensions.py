"""Check the answers, derive names from them, and quote them for the files they go into.

cookiecutter loads `Answers` into each Jinja environment: the one that asks the questions, the one
that renders the project, and the one that renders the hook. A refused answer raises SystemExit,
which Python shows as one line on stderr, with exit status 1.
"""

import contextlib
import io
import json
import keyword
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment
from jinja2.ext import Extension
from slugify import slugify

import local_machine

TEMPLATE = Path(__file__).parent
PROJECT = "{{cookiecutter.project_slug}}"
PACKAGE = "{{cookiecutter.package_name}}"
HOOK = (TEMPLATE / "hooks" / "post_gen_project.py").read_text(encoding="utf-8")
QUESTIONS = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))

# Only some of Python 3.10 to 3.14 have these, and the same answers must give the same project on all.
STANDARD_LIBRARY_OF_SOME = """
aifc annotationlib asynchat asyncore audioop binhex cgi cgitb chunk compression crypt distutils imghdr
imp lib2to3 mailcap msilib nis nntplib ossaudiodev pipes smtpd sndhdr spwd sunau telnetlib tomllib uu
xdrlib
"""
# Imported under another name than the distribution's, or installed by what the extras bring.
IMPORT_NAMES = """
absl antlr4 attr boto3 comet cuda cv2 dateutil docker dotenv fastapi flask functorch git google grpc
httpx hydra hydra_plugins importlinter ipykernel ipython isympy jupyter lightning_fabric markdown_it
mpl_toolkits mypyc notebook nvidia pandas pil psutil py pyarrow pydevd_plugins pylab pytz rpds six sklearn slugify
torchaudio torchgen torchvision transformers triton uv wheel xdist yaml zmq
"""
SKIP = {"-s", "-fs", "-sf", "--skip-if-file-exists"}
FOLDERS = "build checkpoints configs data deploy dist docs logs outputs runs src"
TESTS = "conftest test tests"
WINDOWS_DEVICES = "con prn aux nul " + " ".join(f"com{n} lpt{n}" for n in range(10))

# The two joiners U+200C and U+200D are absent: Persian names and composed emoji need them.
INVISIBLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f"  # control characters, line breaks among them
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u2060-\u2064\u206a-\u206f"
    r"\u2800\u3164\ufeff\uffa0\U0001d173-\U0001d17a"
    r"\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that reorder what is read
    r"\u2028\u2029"  # line and paragraph separators
    r"\ud800-\udfff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)
JINJA = re.compile(r"\{[{%#]")
EMAIL = r"[a-z0-9_%+'-]+(\.[a-z0-9_%+'-]+)*@([a-z0-9]+(-+[a-z0-9]+)*\.)+[a-z0-9]+(-+[a-z0-9]+)*"


@dataclass(frozen=True)
class Rule:
    """What free text must be, and the sentence that tells a person how to get there."""

    advice: str
    longest: int = 300
    shape: str = ""
    optional: bool = False


PLAIN_TEXT = Rule("Give one line of plain text, or nothing.", optional=True)
RULES = {
    "project_name": Rule("Give a short name, such as My Project.", longest=80),
    "project_slug": Rule(
        "Give lower-case letters, digits and single dashes, such as my-project.",
        longest=50,
        shape=r"[a-z0-9]+(-[a-z0-9]+)*",
    ),
    "package_name": Rule(
        "Give a lower-case letter, then letters, digits or underscores, such as my_project.",
        longest=50,
        shape=r"[a-z][a-z0-9_]*",
    ),
    "author_name": Rule("Give a person or an organisation."),
    "author_email": Rule(
        "Give a plain address, such as ann@example.org, or nothing.",
        longest=254,
        shape=f"(?i:{EMAIL})",
        optional=True,
    ),
}


def taken_names() -> set[str]:
    """Return the names that a folder or package must not have, with underscores for dashes."""
    versions = (TEMPLATE / "constraints.txt").read_text(encoding="utf-8")
    requirements = (TEMPLATE / PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.findall(r'(?m)(?:^|")([\w.-]+)[<=>]=', versions + requirements)
    installed = (re.sub("[.-]", "_", name.lower()) for name in found)
    by_hand = (
        f"{STANDARD_LIBRARY_OF_SOME} {IMPORT_NAMES} {FOLDERS} {TESTS} {WINDOWS_DEVICES}".split()
    )
    return {*keyword.kwlist, *sys.stdlib_module_names, *installed, *by_hand}


TAKEN = taken_names()


def is_taken(name: str) -> bool:
    return name.replace("-", "_") in TAKEN


def fault(rule: Rule, answer: object) -> str:
    """Say what is wrong with `answer`, to follow its question's name; empty if nothing is."""
    if not isinstance(answer, str):
        return f"is {answer!a}, which is not text"
    if found := JINJA.search(answer):  # `cruft update` renders stored answers
        return f"contains {found.group()}, which templates run as code"
    if len(answer) > rule.longest:
        return f"has {len(answer)} characters, more than {rule.longest}"
    if found := INVISIBLE.search(answer):
        return f"contains U+{ord(found.group()):04X}, a character that nobody can see"
    if answer != answer.strip().strip("\u200c\u200d").lstrip("\ufe0e\ufe0f"):
        return "begins or ends with white space"
    if not answer:
        return "" if rule.optional else "is empty"
    if rule.shape and not re.fullmatch(rule.shape, answer):
        return f"is {answer!a}"
    return ""


def check_answer(question: str, answer: object) -> None:
    """Refuse a bad answer in one line, which says how to give a good one."""
    default = QUESTIONS[question]
    # cookiecutter itself checks choices and booleans, except those of a replay or a user's config.
    if isinstance(default, list):
        problem = "" if answer in default else f"is {answer!a}"
        advice = f"Give one of: {', '.join(default)}."
    elif isinstance(default, bool):
        problem = "" if isinstance(answer, bool) else f"is {answer!a}"
        advice = "Give yes or no."
    else:
        rule = RULES.get(question, PLAIN_TEXT)
        problem, advice = fault(rule, answer), rule.advice
    if not problem and question in ("project_slug", "package_name") and is_taken(str(answer)):
        problem = f"is '{answer}', a name that Python, a library or a folder already has"
    if problem:
        sys.exit(f"{question} {problem}. {advice}")


def check(answers: dict) -> str:
    """Refuse a Python that cannot train here, and the first bad answer so far. Renders as nothing."""
    verdict = local_machine.judge(local_machine.probe())
    if verdict.status == "refused" and answers.get("_allow_intel_python") is not True:
        sys.exit(verdict.text)
    for question in QUESTIONS:
        if question in answers and not question.startswith("_"):
            check_answer(question, answers[question])
    return ""


def check_place(answers: dict) -> None:
    """Refuse an output folder that cannot be written to."""
    if "_output_dir" not in answers:  # cruft makes its own
        return
    output = Path(answers["_output_dir"])
    project = output / answers["project_slug"]
    problem = ""
    try:
        if TEMPLATE / PROJECT in project.resolve().parents:
            problem = "is inside the template"
        elif os.path.lexists(project) and not project.is_dir():
            problem = f"has a file {project.name}"
        else:  # tried, because permissions do not tell all
            output.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryDirectory(dir=output).cleanup()
    except OSError as error:
        problem = f"cannot be written to ({error.strerror})"
    if problem:
        sys.exit(f"output-dir {str(output)!a} {problem}. Give another folder.")
    if project.exists() and SKIP & {*sys.argv}:
        sys.exit(
            "--skip-if-file-exists would overwrite edited sources: cookiecutter skips only the files"
            " that it renders. Use cruft update, as the README says."
        )


def slug(project_name: str) -> str:
    """Derive a folder name; empty if the name has no letter or digit, such as an emoji."""
    check_answer("project_name", project_name)
    derived = slugify(project_name, max_length=50)
    return f"{derived}-project" if is_taken(derived) else derived


def package(project_slug: str) -> str:
    """Derive a package name: an identifier, so it cannot begin with a digit."""
    check_answer("project_slug", project_slug)
    derived = project_slug.replace("-", "_")
    return f"project_{derived}"[:50].rstrip("_") if derived[0].isdigit() else derived


def quoted(text: str) -> str:
    """Return one literal that TOML, YAML and JSON read alike, emoji included (`tojson` breaks those)."""
    return json.dumps(text, ensure_ascii=False)


def markdown(text: str) -> str:
    """Escape what Markdown or HTML would read as markup, anywhere or at the start of a line."""
    text = re.sub(r"[\\`*_\[\]<>&~|$#]", r"\\\g<0>", text)
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", text)


def template_files(answers: dict) -> list[str]:
    """List the template's files as paths in the new project, for the hook."""
    paths = (path for path in (TEMPLATE / PROJECT).rglob("*") if path.is_file())
    names = sorted(path.relative_to(TEMPLATE / PROJECT).as_posix() for path in paths)
    return [name.replace(PACKAGE, answers["package_name"]) for name in names]


def machine_note(_answers: dict) -> str:
    """Return what the hook tells a person about this Python and this machine."""
    return local_machine.judge(local_machine.probe()).text


def without_code(text: str) -> str:
    """Write `text` so that Jinja renders it as it stands."""
    return re.sub(r"\{(?=[{%#])", "{{ '{' }}", text)


def tolerate_odd_stdin() -> None:
    """Let a closed stdin end with "Aborted!", and bytes of another encoding with a refusal."""
    if sys.stdin is None:
        sys.stdin = io.StringIO()
    elif isinstance(sys.stdin, io.TextIOWrapper):
        with contextlib.suppress(io.UnsupportedOperation):  # something has been read from it
            sys.stdin.reconfigure(errors="surrogateescape")


FILTERS = (check, slug, package, quoted, markdown, template_files, machine_note)


class Answers(Extension):
    """The filters of `cookiecutter.json`, of the template's files and of the hook; when to check."""

    def __init__(self, environment: Environment):
        super().__init__(environment)
        environment.filters |= {used.__name__: used for used in (*FILTERS, self.project_folder)}
        self.creates_files = False
        tolerate_odd_stdin()
        # `cruft update` renders the old template and the new one in one process. Forget both
        # modules, so that each template imports its own.
        for module in (__name__, local_machine.__name__):
            sys.modules.pop(module, None)

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """Check the answers before each question, and let only the template's own text run as code.

        What is given as key=value, in a user's config or by cruft arrives here too, as the default
        of a question.
        """
        if name is not None or source == HOOK:
            return source
        if source == PROJECT:
            return "{{ cookiecutter | project_folder }}"
        if self.creates_files:
            # The path of a file, or OUTPUT/SLUG/./FOLDER, where braces in OUTPUT are no code.
            output, dot, path = source.rpartition(f"{os.sep}.{os.sep}")
            return without_code(output) + dot + path
        own = source in QUESTIONS.values()
        return "{{ cookiecutter | check }}" + (source if own else without_code(source))

    def project_folder(self, answers: dict) -> str:
        """Check everything a last time, and return the name of the folder to create."""
        if "_template" not in answers:  # added after the last question: so this is an answer
            return PROJECT
        check(answers)
        check_place(answers)
        self.creates_files = True
        return answers["project_slug"]
