"""Runs in the new project folder: moves the starter's files up, and deletes what was not chosen.

cookiecutter renders this file before it runs, so that Jinja stands only inside strings.
"""

import json
import sys
from pathlib import Path

ANSWERS = json.loads(r""" {{ cookiecutter | tojson }} """)
TEMPLATE_FILES = json.loads(r""" {{ cookiecutter | template_files | tojson }} """)
MACHINE_NOTE = json.loads(r""" {{ cookiecutter | machine_note | tojson }} """)

NEXT_STEPS = f"""
Created {ANSWERS["project_slug"]}. Next:
  cd {ANSWERS["project_slug"]}
  make setup    install it
  make train    train on the best device here
  make test     check that everything works
"""


def move_up(starter: str) -> None:
    """Move the starter's files over the project's: of two with the same path, the starter's wins."""
    for path in map(Path, TEMPLATE_FILES):
        if path.parts[:2] == ("starters", starter):
            target = Path(*path.parts[2:])
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)


def delete(parts: list[str]) -> None:
    """Delete the template's files in `parts`. Files that a person put beside them stay."""
    for path in map(Path, TEMPLATE_FILES):
        if path.parts[0] in parts:
            path.unlink(missing_ok=True)
            for folder in path.parents[:-1]:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()


move_up(ANSWERS["starter"])
unwanted = ["starters"]
if not ANSWERS["github_actions"]:
    unwanted.append(".github")
if not ANSWERS["deploy"]:
    unwanted += ["deploy", ".dockerignore"]
delete(unwanted)
# On stderr, because the stdout of `cruft diff` is a patch.
print(MACHINE_NOTE, NEXT_STEPS, sep="\n" if MACHINE_NOTE else "", end="", file=sys.stderr)
