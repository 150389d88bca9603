"""Answers that break other templates. Data only; test_answers.py gives them to cookiecutter.

Texts are separated by line ends and by ¦. `$CANARY` is a file that exists only if code was run.
"""

import tempfile
from pathlib import Path

ABSOLUTE = str(Path(tempfile.gettempdir()) / "escaped-from-the-output-folder")


def texts(block: str) -> list[str]:
    return [text.strip() for line in block.strip().splitlines() for text in line.split("¦")]


# Project names, some with the slug that is derived from them.
NAMES = texts(r"""
It's mine ¦ The "Best" Model ¦ 'quoted' ¦ "quoted" ¦ back\slash ¦ ends in backslash\ ¦ C:\new\table
a\u0041b ¦ `ticks` ¦ O''Neil's "''" ¦ Été à Zürich → ete-a-zurich ¦ ÆØÅ ßþð
日本語 → ri-ben-yu ¦ 深度学习 ¦ 한국어 모델 ¦ Проект Ёлка ¦ Σχέδιο ¦ مشروع ¦ פרויקט ¦ नमस्ते
ｆｕｌｌ ｗｉｄｔｈ ¦ ﬁne ligature ¦ 🇨🇭 digits ¦ 𝕄odel 𝟚
2048 game → 2048-game ¦ 3D → 3d ¦ 007 → 007 ¦ 1.0 → 1-0
my.dotted.name → my-dotted-name ¦ my-dashed-name ¦ my_under_name → my-under-name ¦ -- a -- b -- → a-b
...x... ¦ a  b ¦ a/b\c → a-b-c ¦ ../../etc/passwd → etc-passwd ¦ /abs → abs ¦ ~/home ¦ x
torch → torch-project ¦ Hydra Core → hydra-core-project ¦ Lightning → lightning-project
NumPy → numpy-project ¦ Click → click-project ¦ JSON → json-project ¦ test → test-project
class → class-project ¦ None → none ¦ Data → data-project ¦ src → src-project
Tests → tests-project ¦ configs → configs-project ¦ NUL → nul-project ¦ con → con-project
COM1 → com1-project ¦ COM¹ → com1-project ¦ lpt9 → lpt9-project
""")
ACCEPTED = [
    *(
        {"project_name": name}
        for name in ('"""triple"""', "e\u0301te\u0301", "می\u200cخواهم", "I ❤\ufe0f nets")
    ),
    {
        "project_name": "👩\u200d👩\u200d👧 family",
        "author_name": "Ann 👩\u200d🚀",
        "description": "To the 🌙",
    },
    {"project_name": "🚀", "project_slug": "rocket", "package_name": "rocket"},
    {"project_name": "深度学习 Net", "author_name": "李 小龍", "description": "用于图像分类"},
    {"project_name": "7 " + "long" * 19, "project_slug": ("7-" + "long" * 19)[:50]},
    {"project_name": "x" * 80, "project_slug": "x" * 50, "package_name": "x" * 50},
    {"project_name": "Rocket 🚀", "description": "d" * 300},
    {"project_name": "Ω" * 80, "description": "🚀" * 300, "author_name": "a" * 300},
    {"author_email": f"{'a' * 64}@{'b' * 63}.{'c' * 63}.org"},
    {"project_slug": "1", "package_name": "a"},
    {"description": "", "author_email": ""},
    *(
        {"author_email": address}
        for address in texts(
            "ann@example.org ¦ Ann.B+tag@mail.a-b.example.org ¦ z.o'neil%x@example.org ¦ _@1.2"
            " ¦ a@xn--exmple-cua.org"
        )
    ),
    *(
        {"license": license, "author_name": "Zoë Ö'Neil, Inc."}
        for license in ("MIT", "Apache-2.0", "BSD-3-Clause", "Proprietary")
    ),
    {"starter": "image-classification", "github_actions": True, "deploy": True},
    {"starter": "language-modeling", "project_name": 'Zoë\'s 🚀 "Texts"', "github_actions": False},
    {"starter": "language-modeling", "project_name": "x" * 80, "deploy": False},
]

# One line of text that means something in some format: given as name, description and author at once.
INJECTIONS = texts(r"""
", version = "6 ¦ " }, { name = "x ¦ "] ¦ a = 1 # b ¦ [project.scripts] ¦ \u0041 \U0001F680 \e
a: b ¦ a #b ¦ - item ¦ ? key ¦ !!python/object/apply:os.system ['touch $CANARY'] ¦ &anchor *alias
*alias ¦ <<: *x ¦ | literal ¦ > folded ¦ %TAG ! x: ¦ --- ¦ ...x ¦ {a: b} ¦ [a, b] ¦ null ¦ ~ x ¦ yes
1e3 ¦ 0x1F ¦ 2024-01-01 ¦ @at
# heading # ¦ <script>alert(1)</script> ¦ <!-- x ¦ <https://example.org> ¦ [x](javascript:alert(1))
![x](http://example.org/x.png) ¦ [x]: http://example.org ¦ [^1] ¦ `code` ``x`` ¦ ```sh ¦ ~~~ x
**b** _i_ ~~s~~ __u__ ¦ &lt;b&gt; &#65; &amp; &copy; ¦ 1. one ¦ 1) one ¦ + plus ¦ > quote ¦ | a | b |
=== x ¦ ***x ¦ \*escaped\* ¦ $x$ $$y$$ ¦ x </details> </td>
$(touch $CANARY) ¦ `touch $CANARY` ¦ ; touch $CANARY ; ¦ && touch $CANARY ¦ | touch $CANARY
' ; touch $CANARY ; ' ¦ " ; touch $CANARY ; " ¦ $(shell touch $CANARY) ¦ ${HOME} $$ $@ x ¦ x > canary
--help x ¦ -rf x ¦ !x !! ¦ * ? x ¦ %PATH% & calc ¦ ~root x
${ github.token }} ¦ ::set-output name=x::y ¦ ::add-mask::x ¦ ]]> x ¦ on: [push]
\N{BULLET} \x41 \
'); __import__('os').system('touch $CANARY') # ¦ %s %(x)s %d ¦ ${oc.env:HOME} ¦ ??? x
_target_: os.system ¦ }} %} #}
""")
INJECTIONS += ["'''", '"""', '""" + __import__("os").system("touch $CANARY") + """', "{0} {x!r} {}"]

JINJA = texts(r"""
{{ 7 * 7 }} ¦ {{ oops ¦ {% ¦ {# comment #} ¦ {% raw %}x{% endraw %} ¦ {%- set x = 1 -%}x ¦ {{ 1 / 0 }}
{{cookiecutter.project_slug}} ¦ a {{cookiecutter.author_name}} b ¦ {{ cookiecutter.author_name | slug }} ¦ {{ undefined }} ¦ {{{ x
${{ secrets.GITHUB_TOKEN }} ¦ {% include '/etc/passwd' %}
{{ ''.__class__.__mro__[1].__subclasses__() }}
{{ cycler.__init__.__globals__.os.system('touch $CANARY') }}
""")
# Line breaks, control characters, separators, marks that reorder text, zero widths, blanks, surrogates.
CODE_POINTS = """
a d 9 0 7 1b 7f 85 2028 2029 202e 200f 200e 61c 2067 200b feff ad e0041 3164 2800 d800 dce9
"""
INVISIBLE = [f"a{chr(int(code, 16))}b" for code in CODE_POINTS.split()] + ["ab\n", "\x1b[31mred"]
FREE_TEXT = ("project_name", "description", "author_name")
TEXT = (*FREE_TEXT, "project_slug", "package_name", "author_email")
NAMES_WITHOUT_A_LETTER = ["🚀", "!!!", "...", "\u0301", "--"]
PATHS = texts(r"""
../x ¦ .. ¦ . ¦ ../out/x ¦ a/../../x ¦ a/b ¦ a/ ¦ / ¦ ~ ¦ ~/x ¦ $HOME ¦ %2e%2e ¦ .git ¦ .a ¦ a.b ¦ a:stream
C:\x ¦ C:x ¦ ..\x ¦ a\b ¦ \\server\share ¦ a∕b
""")
PATHS.append(ABSOLUTE)
NO_SLUGS = texts("""
My-Project ¦ a_b ¦ a.b ¦ a b ¦ a--b ¦ -a ¦ a- ¦ --help ¦ été ¦ ａ ¦ 日本 ¦ a;b ¦ $(x) ¦ a'b ¦ a"b ¦ a#b ¦ a@b ¦ ²
""")
NO_IDENTIFIERS = texts("""
my-project ¦ 2048 ¦ _a ¦ __init__ ¦ Abc ¦ a b ¦ été ¦ ﬁ ¦ ａ ¦ a;import os ¦ * ¦ a,b ¦ a as b
""")
SHADOWS = texts("""
json ¦ test ¦ typing ¦ distutils ¦ class ¦ import ¦ lambda ¦ torch ¦ lightning ¦ pytorch_lightning
hydra ¦ hydra_core ¦ omegaconf ¦ yaml ¦ sklearn ¦ scikit_learn ¦ click ¦ attr ¦ src ¦ tests ¦ configs
data ¦ con ¦ prn ¦ aux ¦ nul ¦ com0 ¦ com1 ¦ lpt1 ¦ lpt9
""")
NO_ADDRESSES = texts("""
ann ¦ @ ¦ ann@ ¦ @example.org ¦ ann@example ¦ a..b@example.org ¦ .a@example.org ¦ a.@example.org
a b@example.org ¦ ann@example..org ¦ ann@-a.org ¦ ann@a-.org ¦ ann@exämple.org ¦ ann@@example.org
Ann <ann@example.org> ¦ ann@example.org, bob@example.org ¦ "; touch $CANARY; "@example.org
ann@[127.0.0.1] ¦ mailto:ann@example.org
""")
CHOICES = ("starter", "license", "github_actions", "deploy")
NO_CHOICES = [
    "GPL",
    "digits",
    "mit",
    "MIT ",
    "maybe",
    "yes please",
    "",
    "0",
    "2",
    "ＭＩＴ",
    JINJA[-1],
]

# Question, answers, and what the refusal says. Answers that are no text stand in a user's config.
REFUSED = [
    *((question, [""], "is empty") for question in ("project_name", *TEXT[2:5])),
    ("project_name", ["   ", "\u200d", "\ufe0f", " A", "A ", "A\u00a0", "\u3000A"], "white space"),
    *((question, [" x", "x ", " a@example.org"], "white space") for question in TEXT),
    ("project_name", ["x" * 81, "x" * 300], "characters, more than 80"),
    ("project_slug", ["x" * 51, "x" * 300], "characters, more than 50"),
    ("package_name", ["x" * 51, "x" * 300], "characters, more than 50"),
    ("description", ["x" * 301], "301 characters"),
    ("author_name", ["x" * 100_000], "100000 characters"),
    ("author_email", [f"{'a' * 300}@example.org"], "312 characters"),
    ("project_slug", PATHS + NO_SLUGS, "is "),
    ("package_name", PATHS + NO_IDENTIFIERS, "is "),
    ("package_name", SHADOWS, "a name that"),
    ("project_slug", [name.replace("_", "-") for name in SHADOWS], "a name that"),
    ("author_email", NO_ADDRESSES, "is '"),
    *((question, INVISIBLE, "nobody can see") for question in TEXT),
    *((question, JINJA, "run as code") for question in TEXT),
    ("package_name", ["{{ cookiecutter.project_slug }}"], "run as code"),
    *((question, [True, None, {"a": "b"}], "which is not text") for question in TEXT),
    ("description", [{JINJA[-1]: JINJA[-1]}], "which is not text"),
    *((question, [*NO_CHOICES, None, 1, {"MIT": 1}], "is ") for question in CHOICES),
]
