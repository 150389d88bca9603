"""Checks every answer before anything is written, and quotes it for the file it goes into.

A filter that refuses raises FailedHookException, which cookiecutter shows as one clean line, exit
status 1. It runs twice: after each question, from a private variable of `cookiecutter.json`; and
when the project folder is named, because `--replay` skips those variables.
"""

import importlib.util
import json
import keyword
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from cookiecutter.exceptions import FailedHookException
from jinja2.ext import Extension
from slugify import slugify

PROJECT_FOLDER = "{{cookiecutter.project_slug}}"
MACHINE_CHECK = Path(__file__).parent / "hooks" / "post_gen_project.py"

# Written out, because sys.stdlib_module_names and unicodedata differ from one Python to the next
# and the same answers must give the same project on all of them.
STANDARD_LIBRARY = """
abc aifc annotationlib antigravity argparse array ast asynchat asyncio asyncore atexit audioop base64
bdb binascii bisect builtins bz2 calendar cgi cgitb chunk cmath cmd code codecs codeop collections
colorsys compileall compression concurrent configparser contextlib contextvars copy copyreg crypt csv
ctypes curses dataclasses datetime dbm decimal difflib dis distutils doctest email encodings ensurepip
enum errno faulthandler fcntl filecmp fileinput fnmatch fractions ftplib functools gc genericpath
getopt getpass gettext glob graphlib grp gzip hashlib heapq hmac html http idlelib imaplib imghdr imp
importlib inspect io ipaddress itertools json keyword lib2to3 linecache locale logging lzma mailbox
mailcap marshal math mimetypes mmap modulefinder msilib msvcrt multiprocessing netrc nis nntplib nt
ntpath nturl2path numbers opcode operator optparse os ossaudiodev pathlib pdb pickle pickletools pipes
pkgutil platform plistlib poplib posix posixpath pprint profile profiling pstats pty pwd py_compile
pyclbr pydoc pydoc_data pyexpat queue quopri random re readline reprlib resource rlcompleter runpy
sched secrets select selectors shelve shlex shutil signal site smtpd smtplib sndhdr socket
socketserver spwd sqlite3 sre_compile sre_constants sre_parse ssl stat statistics string stringprep
struct subprocess sunau symtable sys sysconfig syslog tabnanny tarfile telnetlib tempfile termios
textwrap this threading time timeit tkinter token tokenize tomllib trace traceback tracemalloc tty
turtle turtledemo types typing unicodedata unittest urllib uu uuid venv warnings wave weakref
webbrowser winreg winsound wsgiref xdrlib xml xmlrpc zipapp zipfile zipimport zlib zoneinfo
"""
# By the name they are imported under, and by the name they are installed under where it differs.
DEPENDENCIES = """
aim antlr4 build cookiecutter coverage cruft fsspec functorch hatchling hydra hydra_core hydra_plugins
ipykernel ipython jinja2 joblib jupyter lightning lightning_fabric lightning_utilities matplotlib
mlflow mypy neptune notebook numpy omegaconf optuna packaging pandas pil pillow pip pre_commit psutil
pydantic pylab pytest pytorch_lightning pyyaml requests rich ruff scikit_learn scipy setuptools
sklearn tensorboard tensorboardx tokenizers torch torchaudio torchgen torchmetrics torchvision tqdm
transformers triton typing_extensions uv wandb wheel yaml
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
    r"\xad\u034f\u061c\u115f\u1160\u180e\u200b\u2060-\u2064\u206a-\u206f\u3164\ufeff\uffa0"
    r"\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that reorder what is read
    r"\u2028\u2029"  # line and paragraph separators
    r"\ud800-\udfff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)
JINJA = re.compile(r"\{[{%#]")  # `cruft update` renders stored answers
EMAIL = r"[a-z0-9_%+'-]+(\.[a-z0-9_%+'-]+)*@([a-z0-9]+(-+[a-z0-9]+)*\.)+[a-z0-9]+(-+[a-z0-9]+)*"


@dataclass(frozen=True)
class Rule:
    """What an answer must be, and the sentence that tells a person how to get there."""

    advice: str
    longest: int = 300
    shape: str = ""
    optional: bool = False
    choices: tuple = ()


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
    "description": Rule("Give one line of plain text, or nothing.", optional=True),
    "author_name": Rule("Give a person or an organisation."),
    "author_email": Rule(
        "Give a plain address, such as ann@example.org, or nothing.",
        longest=254,
        shape=f"(?i:{EMAIL})",
        optional=True,
    ),
    "license": Rule(
        "Give MIT, Apache-2.0, BSD-3-Clause or Proprietary.",
        choices=("MIT", "Apache-2.0", "BSD-3-Clause", "Proprietary"),
    ),
    "github_actions": Rule("Give yes or no.", choices=(True, False)),
}


def fault(answer: object, rule: Rule) -> str:
    """What is wrong with `answer`, to follow its field's name in a sentence; empty if nothing is."""
    if rule.choices:
        return "" if answer in rule.choices else f"is {answer!a}"
    if not isinstance(answer, str):
        return f"is {answer!a}, which is not text"
    if len(answer) > rule.longest:
        return f"has {len(answer)} characters, more than {rule.longest}"
    if found := INVISIBLE.search(answer):
        return f"contains U+{ord(found.group()):04X}, a character that nobody can see"
    if found := JINJA.search(answer):
        return f"contains {found.group()}, which templates run as code"
    if answer != answer.strip().strip("\u200c\u200d"):
        return "begins or ends with white space"
    if not answer:
        return "" if rule.optional else "is empty"
    if rule.shape and not re.fullmatch(rule.shape, answer):
        return f"is {answer!a}"
    return ""


def taken(name: str) -> bool:
    """Whether a folder or package of that name would get in the way of another."""
    return name.replace("-", "_") in TAKEN


def check_answers(answers: dict) -> str:
    """Refuse the first bad answer of those given so far. Renders as nothing."""
    for field, rule in RULES.items():
        if field not in answers:
            continue
        answer = answers[field]
        problem = fault(answer, rule)
        if not problem and field in ("project_slug", "package_name") and taken(answer):
            problem = f"is '{answer}', a name that Python, a library or a folder already has"
        if problem:
            raise FailedHookException(f"{field} {problem}. {rule.advice}")
    return ""


def check_machine(answers: dict) -> str:
    """Refuse an Intel Python on Apple Silicon, by the hook's own check. Renders as nothing."""
    spec = importlib.util.spec_from_file_location("machine_check", MACHINE_CHECK)
    assert spec is not None and spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    verdict = hook.judge(hook.probe())
    if verdict.status == "refused" and not answers["_allow_intel_python"]:
        raise FailedHookException(verdict.text)
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
    """The filters of `cookiecutter.json` and of the template's files."""

    def __init__(self, environment):
        super().__init__(environment)
        for used in (check_answers, check_machine, slug, package, quoted, markdown):
            environment.filters[used.__name__] = used
        # `cruft update` renders the old template and the new one in one process: forgotten here,
        # this module is imported anew, so each is rendered with its own filters.
        sys.modules.pop(__name__, None)

    def preprocess(self, source, name, filename=None):
        """Check all answers when the project folder is named, the last moment before it exists."""
        if source == PROJECT_FOLDER:
            return "{{ cookiecutter | check_machine }}{{ cookiecutter | check_answers }}" + source
        return source
