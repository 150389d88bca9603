"""Answers that break other templates. Data only; test_awkward_answers.py gives them to cookiecutter.

`$CANARY` is a file that exists only if code in an answer was run.
"""

import tempfile
from pathlib import Path

CHANNELS = ("key=value", "config", "replay", "typed")
FREE_TEXT = ("project_name", "description", "author_name")

# Kind -> answers that make a project. The channels take turns.
ACCEPTED = {
    "quotes and backslashes in a name": [
        {"project_name": name}
        for name in (
            "It's mine",
            'The "Best" Model',
            "'quoted'",
            '"quoted"',
            "back\\slash",
            "ends in backslash\\",
            "C:\\new\\table",
            "a\\u0041b",
            "`ticks`",
            '"""triple"""',
            "O''Neil's \"''\"",
        )
    ],
    "accents and other alphabets in a name": [
        {"project_name": "Été à Zürich", "project_slug": "ete-a-zurich"},
        {"project_name": "ÆØÅ ßþð"},
        {"project_name": "e\u0301te\u0301"},
        {"project_name": "日本語", "project_slug": "ri-ben-yu"},
        {"project_name": "深度学习"},
        {"project_name": "深度学习 Net", "author_name": "李 小龍", "description": "用于图像分类"},
        {"project_name": "한국어 모델"},
        {"project_name": "Проект Ёлка"},
        {"project_name": "Σχέδιο"},
        {"project_name": "مشروع"},
        {"project_name": "פרויקט"},
        {"project_name": "می\u200cخواهم"},
        {"project_name": "नमस्ते"},
        {"project_name": "ｆｕｌｌ ｗｉｄｔｈ"},
        {"project_name": "ﬁne ligature"},
    ],
    "emoji in a name": [
        {"project_name": "🚀", "project_slug": "rocket", "package_name": "rocket"},
        {"project_name": "Rocket 🚀", "description": "To the 🌙", "author_name": "Ann 👩\u200d🚀"},
        {"project_name": "I ❤\ufe0f nets"},
        {"project_name": "👩\u200d👩\u200d👧 family"},
        {"project_name": "🇨🇭 digits"},
        {"project_name": "𝕄odel 𝟚"},
    ],
    "leading digits": [
        {"project_name": "2048 game", "package_name": "project_2048_game"},
        {"project_name": "3D", "package_name": "project_3d"},
        {"project_name": "007", "package_name": "project_007"},
        {"project_name": "1.0", "package_name": "project_1_0"},
        {"project_name": "7 " + "long" * 19, "project_slug": ("7-" + "long" * 19)[:50]},
    ],
    "dots, dashes and spaces": [
        {"project_name": "my.dotted.name", "project_slug": "my-dotted-name"},
        {"project_name": "my-dashed-name"},
        {"project_name": "my_under_name", "project_slug": "my-under-name"},
        {"project_name": "-- a -- b --", "project_slug": "a-b"},
        {"project_name": "...x..."},
        {"project_name": "a  b"},
        {"project_name": "a/b\\c", "project_slug": "a-b-c"},
        {"project_name": "../../etc/passwd", "project_slug": "etc-passwd"},
        {"project_name": "/abs", "project_slug": "abs-project"},
        {"project_name": "~/home"},
        {"project_name": "x"},
    ],
    "a name that shadows, renamed": [
        {"project_name": "torch", "project_slug": "torch-project", "package_name": "torch_project"},
        {"project_name": "Hydra Core", "project_slug": "hydra-core-project"},
        {"project_name": "Lightning", "project_slug": "lightning-project"},
        {"project_name": "NumPy", "project_slug": "numpy-project"},
        {"project_name": "Click", "project_slug": "click-project"},
        {"project_name": "JSON", "project_slug": "json-project"},
        {"project_name": "test", "project_slug": "test-project"},
        {"project_name": "class", "package_name": "class_project"},
        {"project_name": "None", "project_slug": "none"},
        {"project_name": "Data", "project_slug": "data-project"},
        {"project_name": "src", "project_slug": "src-project"},
        {"project_name": "Tests", "project_slug": "tests-project"},
        {"project_name": "configs", "project_slug": "configs-project"},
        {"project_name": "NUL", "project_slug": "nul-project"},
        {"project_name": "con", "project_slug": "con-project"},
        {"project_name": "COM1", "project_slug": "com1-project"},
        {"project_name": "COM¹", "project_slug": "com1-project"},
        {"project_name": "lpt9", "project_slug": "lpt9-project"},
    ],
    "as long as allowed": [
        {"project_name": "x" * 80, "project_slug": "x" * 50, "package_name": "x" * 50},
        {"project_name": "Ω" * 80},
        {"description": "d" * 300, "author_name": "a" * 300},
        {"description": "🚀" * 300},
        {"author_email": f"{'a' * 64}@{'b' * 63}.{'c' * 63}.org"},
        {"project_slug": "1", "package_name": "a"},
    ],
    "empty where it may be": [
        {"description": ""},
        {"author_email": ""},
        {"description": "", "author_email": ""},
    ],
    "an address": [
        {"author_email": address}
        for address in (
            "ann@example.org",
            "Ann.B+tag@mail.a-b.example.org",
            "z.o'neil%x@example.org",
            "_@1.2",
            "a@xn--exmple-cua.org",
        )
    ],
    "a license": [
        {"license": "MIT", "author_name": "Zoë Ö'Neil, Inc."},
        {"license": "Apache-2.0", "author_name": "Zoë Ö'Neil, Inc."},
        {"license": "BSD-3-Clause", "author_name": "Zoë Ö'Neil, Inc."},
        {"license": "Proprietary", "author_name": "Zoë Ö'Neil, Inc."},
        {"license": "mit"},
        {"license": "4"},
    ],
    "a starter": [
        {"starter": "image-classification"},
        {"starter": "language-modeling", "project_name": 'Zoë\'s 🚀 "Texts"'},
        {"starter": "Language-Modeling"},
        {"starter": "1"},
        {"starter": "2", "project_name": "x" * 80, "description": "d" * 300},
    ],
    "yes or no": [
        {"github_actions": word}
        for word in ("yes", "Y", "true", "1", "no", "N", "False", "0", "off")
    ],
}

# One line of text that means something in some format: given as name, description and author at once.
INJECTIONS = {
    "TOML": [
        '", version = "6',
        '" }, { name = "x',
        '"]',
        "'''",
        "a = 1 # b",
        "[project.scripts]",
        "\\u0041 \\U0001F680 \\e",
    ],
    "YAML": [
        "a: b",
        "a #b",
        "- item",
        "? key",
        "!!python/object/apply:os.system ['touch $CANARY']",
        "&anchor *alias",
        "*alias",
        "<<: *x",
        "| literal",
        "> folded",
        "%TAG ! x:",
        "---",
        "...x",
        "{a: b}",
        "[a, b]",
        "null",
        "~ x",
        "yes",
        "1e3",
        "0x1F",
        "2024-01-01",
        "@at",
    ],
    "Markdown and HTML": [
        "# heading #",
        "<script>alert(1)</script>",
        "<!-- x",
        "<https://example.org>",
        "![x](http://example.org/x.png)",
        "[x](javascript:alert(1))",
        "[x]: http://example.org",
        "[^1]",
        "`code` ``x``",
        "```sh",
        "~~~ x",
        "**b** _i_ ~~s~~ __u__",
        "&lt;b&gt; &#65; &amp; &copy;",
        "1. one",
        "1) one",
        "+ plus",
        "> quote",
        "| a | b |",
        "=== x",
        "***x",
        "\\*escaped\\*",
        "$x$ $$y$$",
        "x </details> </td>",
    ],
    "shell and make": [
        "$(touch $CANARY)",
        "`touch $CANARY`",
        "; touch $CANARY ;",
        "&& touch $CANARY",
        "| touch $CANARY",
        "' ; touch $CANARY ; '",
        '" ; touch $CANARY ; "',
        "$(shell touch $CANARY)",
        "${HOME} $$ $@ x",
        "x > canary",
        "--help x",
        "-rf x",
        "!x !!",
        "* ? x",
        "%PATH% & calc",
        "~root x",
    ],
    "GitHub workflow": [
        "${ github.token }}",
        "::set-output name=x::y",
        "::add-mask::x",
        "]]> x",
        "on: [push]",
    ],
    "Python, Hydra and format strings": [
        '"""',
        '""" + __import__("os").system("touch $CANARY") + """',
        "'); __import__('os').system('touch $CANARY') #",
        "\\N{BULLET} \\x41 \\",
        "{0} {x!r} {{}".replace("{{", "{"),
        "%s %(x)s %d",
        "${oc.env:HOME}",
        "??? x",
        "_target_: os.system",
        "}} %} #}",
    ],
}

JINJA = [
    "{{ 7 * 7 }}",
    "{{ oops",
    "{%",
    "{# comment #}",
    "{% raw %}x{% endraw %}",
    "{%- set x = 1 -%}x",
    "a {{cookiecutter.author_name}} b",
    "{{ cookiecutter.author_name | slug }}",
    "${{ secrets.GITHUB_TOKEN }}",
    "{{ undefined }}",
    "{{ 1 / 0 }}",
    "{% include '/etc/passwd' %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch $CANARY') }}",
    "{{{ x",
]
INVISIBLE = {
    "a newline": ("a\nb", "U+000A"),
    "a newline at the end": ("ab\n", "U+000A"),
    "a carriage return": ("a\rb", "U+000"),
    "a tab": ("a\tb", "U+0009"),
    "NUL": ("a\0b", "U+0000"),
    "an escape sequence": ("\x1b[31mred", "U+001B"),
    "a bell": ("a\x07", "U+0007"),
    "a delete": ("a\x7fb", "U+007F"),
    "a C1 control": ("a\x85b", "U+0085"),
    "a line separator": ("a\u2028b", "U+2028"),
    "a paragraph separator": ("a\u2029b", "U+2029"),
    "a right-to-left override": ("a\u202eb", "U+202E"),
    "a right-to-left mark": ("a\u200fb", "U+200F"),
    "a left-to-right mark": ("a\u200eb", "U+200E"),
    "an Arabic letter mark": ("a\u061cb", "U+061C"),
    "an isolate": ("\u2067a\u2069", "U+2067"),
    "a zero-width space": ("a\u200bb", "U+200B"),
    "a byte order mark": ("\ufeffa", "U+FEFF"),
    "a soft hyphen": ("a\u00adb", "U+00AD"),
    "a tag": ("a\U000e0041", "U+E0041"),
    "a Hangul filler": ("\u3164", "U+3164"),
    "a Braille blank": ("\u2800", "U+2800"),
    "a lone surrogate": ("\ud800", "U+D800"),
    "a byte of another encoding": ("caf\udce9", "U+DCE9"),
}
ABSOLUTE = Path(tempfile.gettempdir()) / "escaped-from-the-output-folder"

# Kind -> (field, answer, what the line says of it). The channels take turns.
REFUSED = {
    "no name": [
        ("project_name", "", "is empty"),
        ("project_name", "   ", "white space"),
        ("project_name", "\u200d", "white space"),
        ("project_name", "\ufe0f", "white space"),
        ("project_slug", "", "is empty"),
        ("package_name", "", "is empty"),
        ("author_name", "", "is empty"),
    ],
    "spaces at either end": [
        ("project_name", " A", "white space"),
        ("project_name", "A ", "white space"),
        ("project_name", "A\u00a0", "white space"),
        ("project_name", "\u3000A", "white space"),
        ("description", " x", "white space"),
        ("description", "x ", "white space"),
        ("author_name", " x ", "white space"),
        ("author_email", " a@example.org", "white space"),
        ("project_slug", " a", "white space"),
    ],
    "a name that gives no folder name": [
        ("project_slug", {"project_name": name}, "is empty")
        for name in ("🚀", "!!!", "...", "\u0301", "--")
    ],
    "too long": [
        ("project_name", "x" * 300, "300 characters"),
        ("project_name", "x" * 81, "81 characters"),
        ("project_slug", "x" * 300, "300 characters"),
        ("package_name", "x" * 300, "300 characters"),
        ("description", "x" * 301, "301 characters"),
        ("author_name", "x" * 100_000, "100000 characters"),
        ("author_email", f"{'a' * 300}@example.org", "312 characters"),
    ],
    "a folder outside the output folder": [
        ("project_slug", path, "is '")
        for path in (
            "../x",
            "..",
            ".",
            "../out/x",
            "a/../../x",
            "a/b",
            "a/",
            "/",
            str(ABSOLUTE),
            "~",
            "~/x",
            "$HOME",
            "C:\\x",
            "C:x",
            "..\\x",
            "a\\b",
            "\\\\server\\share",
            "%2e%2e",
            ".git",
            "a\u2215b",
            "a:stream",
        )
    ],
    "a package outside the project": [
        ("package_name", path, "is '")
        for path in ("../x", "..", "a/b", str(ABSOLUTE), "a.b", ".a", "a\\b", "~")
    ],
    "a slug of another form": [
        ("project_slug", slug, "is ")
        for slug in (
            "My-Project",
            "a_b",
            "a.b",
            "a b",
            "a--b",
            "-a",
            "a-",
            "--help",
            "été",
            "ａ",
            "日本",
            "a;b",
            "$(x)",
            "a'b",
            'a"b',
            "a#b",
            "a@b",
            "²",
        )
    ],
    "a package that is no identifier": [
        ("package_name", name, "is '")
        for name in (
            "my-project",
            "2048",
            "_a",
            "__init__",
            "Abc",
            "a b",
            "été",
            "ﬁ",
            "ａ",
            "a;import os",
            "*",
            "a,b",
            "a as b",
        )
    ],
    "a name that shadows": [
        *(
            ("package_name", name, f"is '{name}', a name that")
            for name in (
                "json",
                "test",
                "typing",
                "distutils",
                "class",
                "import",
                "lambda",
                "torch",
                "lightning",
                "pytorch_lightning",
                "hydra",
                "omegaconf",
                "yaml",
                "sklearn",
                "click",
                "attr",
                "src",
                "tests",
                "configs",
                "data",
                "con",
                "nul",
                "com1",
                "lpt9",
            )
        ),
        *(
            ("project_slug", name, f"is '{name}', a name that")
            for name in ("torch", "hydra-core", "pytorch-lightning", "scikit-learn", "json")
        ),
        *(
            ("project_slug", name, f"is '{name}', a name that")
            for name in ("con", "prn", "aux", "nul", "com0", "lpt1", "src", "tests", "class")
        ),
    ],
    "what nobody can see": [
        *((field, text, says) for text, says in INVISIBLE.values() for field in FREE_TEXT),
        ("project_slug", "a\n", "U+000A"),
        ("package_name", "a\n", "U+000A"),
        ("author_email", "a@example.org\nBcc: x", "U+000A"),
    ],
    "Jinja": [
        *((field, text, "run as code") for text in JINJA for field in FREE_TEXT),
        ("project_slug", JINJA[-2], "run as code"),
        ("package_name", "{{ cookiecutter.project_slug }}", "run as code"),
        ("author_email", JINJA[-2], "run as code"),
        ("license", JINJA[-2], ""),
        ("starter", JINJA[-2], ""),
        ("github_actions", JINJA[-2], ""),
    ],
    "a malformed address": [
        ("author_email", address, "is '")
        for address in (
            "ann",
            "@",
            "ann@",
            "@example.org",
            "ann@example",
            "a..b@example.org",
            ".a@example.org",
            "a.@example.org",
            "a b@example.org",
            "ann@example..org",
            "ann@-a.org",
            "ann@a-.org",
            "ann@exämple.org",
            "ann@@example.org",
            "Ann <ann@example.org>",
            "ann@example.org, bob@example.org",
            '"; touch $CANARY; "@example.org',
            "ann@[127.0.0.1]",
            "mailto:ann@example.org",
        )
    ],
    "no license": [("license", word, "is '") for word in ("GPL", "MIT ", "", "0", "5", "ＭＩＴ")],
    "no starter": [
        ("starter", word, "is '") for word in ("digits", "language modeling", "", "0", "3", "gpt ")
    ],
    "neither yes nor no": [
        (question, word, "is '")
        for question in ("github_actions", "deploy")
        for word in ("maybe", "", "2", "nope", "yes please")
    ],
    "not text": [
        ("project_name", True, "is True"),
        ("project_name", None, "is None"),
        ("project_name", {"a": "b"}, "is"),
        ("description", {"a": "b"}, "is"),
        ("description", {"{{ cycler.__init__.__globals__.os.system('touch $CANARY') }}": 1}, ""),
        ("author_name", False, "is False"),
        ("author_email", None, "is None"),
        ("license", None, "is None"),
        ("starter", None, "is None"),
        ("starter", {"image-classification": 1}, "is"),
        ("license", {"MIT": 1}, "is"),
        ("github_actions", None, "is None"),
        ("_allow_intel_python", "maybe", "is 'maybe'"),
    ],
}
