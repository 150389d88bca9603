"""Verdicts for people, as a table, and for programs, as JSON."""

import dataclasses
import json
import os
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .findings import Finding, Verdict

COLOURS = {"fine": "green", "warning": "yellow", "unknown": "magenta", "fails": "red"}


def succeeds(verdicts: Sequence[Verdict]) -> bool:
    """Return whether the experiment would train everywhere; `unknown` counts as no."""
    return all(verdict.verdict in ("fine", "warning", "skipped") for verdict in verdicts)


def show(verdicts: Sequence[Verdict]) -> None:
    console = Console(highlight=False)
    table = Table(
        "target", "how it was checked", "verdict", "a step needs", box=None, pad_edge=False
    )
    for verdict in verdicts:
        word = Text(verdict.verdict, COLOURS.get(verdict.verdict, ""))
        table.add_row(verdict.target, verdict.how, word, verdict.memory.partition(":")[0])
    for line in console.render_lines(table, pad=False):
        text = Text.assemble(*((part.text, part.style or "") for part in line))
        text.rstrip()  # Rich fills a line with blanks
        console.print(text)
    for finding, targets in _together(verdicts):
        head = Text(f"\n{', '.join(targets)}: ").append(finding.kind, COLOURS[finding.severity])
        console.print(head.append(f"  {_place(finding)}".rstrip()), soft_wrap=True)
        console.print(Text(f"  {finding.message}"), soft_wrap=True)
        console.print(Text(f"  fix: {finding.fix}"), soft_wrap=True)


def as_json(verdicts: Sequence[Verdict]) -> str:
    rows = [{**dataclasses.asdict(v), "verdict": v.verdict} for v in verdicts]
    for row in rows:
        for finding in row["findings"]:
            finding["file"] = finding["file"] and os.path.relpath(finding["file"])
    return json.dumps({"trains": succeeds(verdicts), "targets": rows}, indent=2)


def _together(verdicts: Sequence[Verdict]) -> list[tuple[Finding, list[str]]]:
    """Return each place once, with all targets that it concerns, the worst first."""
    targets: dict[tuple[object, ...], list[str]] = {}
    first: dict[tuple[object, ...], Finding] = {}
    for verdict in verdicts:
        for finding in verdict.findings:
            key: tuple[object, ...] = (finding.kind, finding.severity, finding.file, finding.line)
            key = (*key, finding.operator)
            if finding.file is None:
                key = (*key, finding.message)
            first.setdefault(key, finding)
            targets.setdefault(key, []).append(verdict.target)
    return [(first[key], targets[key]) for key in first]


def _place(finding: Finding) -> str:
    if finding.file is None:
        return ""
    where = f"{os.path.relpath(finding.file)}:{finding.line}"
    return f"{where}, in its backward" if finding.backward else where
