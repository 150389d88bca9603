"""The rows about what is installed: does it load, and is it known to do harm?"""

from __future__ import annotations

from .harm import Harm, number, versions_with_harm
from .machine import OTHER_PYTHON
from .probe import PACKAGES, Facts
from .row import Row, install

LOADED_AS = {"hydra-core": "hydra"}  # where the name to import is another


def packages(facts: Facts) -> list[Row]:
    return [package(facts, name) for name in PACKAGES]


def package(facts: Facts, name: str) -> Row:
    seen, stage = facts.torch, LOADED_AS.get(name, name)
    version = facts.versions.get(name, seen.version if name == "torch" else "")
    error = seen.errors.get(stage, "")
    died_here = seen.died.startswith(f"{stage}: ")
    tried = stage in seen.finished or died_here or error
    if not version and (not tried or error.startswith("ModuleNotFoundError")):
        why = "It is not installed here; this installs all that the project needs:"
        return Row(name, "missing", "wrong", why, install(facts, editable=True))
    if error:
        fix = install(facts, name, again=True)
        return Row(name, version, "wrong", f"It does not load: {error}", fix)
    if stage in seen.finished:
        return Row(name, version)
    if died_here:
        fix = install(facts, name, again=True)
        return Row(name, version, "wrong", f"Loading it ends Python: {seen.died}", fix)
    for harm in versions_with_harm(facts.versions):
        if harm.never_import and harm.package == name:
            return Row(
                name, version, "unknown", "It was not loaded, since it does harm: see below."
            )
    why = seen.died or "It needs PyTorch, which does not load."
    return Row(name, version, "unknown", f"Whether it loads could not be seen: {why}")


def harms(facts: Facts) -> list[Row]:
    met: dict[str, list[Harm]] = {}
    for harm in versions_with_harm(facts.versions, facts.system, facts.python):
        met.setdefault(harm.package, []).append(harm)
    return [harmful(facts, name, known) for name, known in met.items()] or [
        Row("known harm", "none in these versions")
    ]


def harmful(facts: Facts, name: str, known: list[Harm]) -> Row:
    state = "wrong" if any(harm.state == "wrong" for harm in known) else "warning"
    why = " ".join(f"{harm.what} ({harm.source})" for harm in known)
    requirement = max((harm.install for harm in known), key=number_of)  # free of all of them
    fix = install(facts, requirement) if requirement else OTHER_PYTHON
    return Row(f"harm in {name}", facts.versions[name], state, why, fix)


def number_of(requirement: str) -> tuple[int, ...]:
    return number(requirement.partition(">=")[2])
