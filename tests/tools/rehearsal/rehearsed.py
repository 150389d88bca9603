"""Each case through `rehearse`: is every fault found, and nothing else said?

python rehearsed.py                      the confusion tables, and exit status 1 if they are not clean
python rehearsed.py --json out.json --only SmallCNN TinyGPT --package image_project

The package of a generated project must be importable: PYTHONPATH=...
"""

import argparse
import faulthandler
import importlib
import json
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from cases import CASES, TARGETS, Case, load_all, place_of_fault
from real import quiet

BAD = ("fails", "warning")
AS_IT_SHOULD_BE = ("fine", "caught", "-")


def rehearse(case: Case, engine: Any, time_limit: float) -> dict[str, Any]:
    """What the engine says of each target, as plain data."""
    faulthandler.dump_traceback_later(time_limit, exit=True)  # one that hangs ends it all
    torch.manual_seed(0)
    started = time.monotonic()
    said: dict[str, Any] = {"kind": case.expected.kind, "crash": "", "targets": {}}
    with quiet():
        try:
            verdicts = engine.rehearse_task(
                case(), case.data(), trainer=case.settings, memory=case.memory, accept=case.accept
            )
        except Exception:
            said["crash"] = traceback.format_exc()
            verdicts = []
    for verdict in verdicts:
        findings = [vars(finding) for finding in verdict.findings]
        said["targets"][verdict.target] = {"verdict": verdict.verdict, "findings": findings}
    faulthandler.cancel_dump_traceback_later()
    said["seconds"] = round(time.monotonic() - started, 2)
    return said


def judge(case: Case, target: str, said: dict[str, Any]) -> str:
    """One cell of the table: caught, misplaced, missed, unknown; fine or alarm; `-` if not claimed."""
    expected = case.expected
    severity = expected.severities.get(target, "fine")
    if severity == "any":
        return "-"
    if said["crash"] or target not in said["targets"]:
        return "crash"
    answer = said["targets"][target]
    findings = [f for f in answer["findings"] if f["kind"] != "harm"]  # of versions, not of a case
    if severity in ("fine", "may warn"):
        graver = {f["severity"] for f in findings} - (
            {"warning"} if severity == "may warn" else set()
        )
        return "alarm" if graver & set(BAD) else "unknown" if graver else "fine"
    kinds = (expected.kind, *expected.also)
    named = [f for f in findings if f["kind"] in kinds and f["severity"] != "unknown"]
    if not named:
        return "unknown" if findings else "missed"
    placed = [f for f in named if at_the_fault(case, f)]
    graded = [f for f in placed if severity in ("flagged", f["severity"])]
    if not placed:
        return "misplaced"
    if not graded:
        return "wrong severity"
    place = place_of_fault(case)
    lines = place[1] if place else range(0)
    follows = () if severity == "warning" else expected.also  # from the same fault
    elsewhere = [f for f in findings if f["line"] not in lines and f["kind"] not in follows]
    alarms = [f for f in elsewhere if f["severity"] in BAD and f not in placed]
    return "caught, and an alarm" if alarms else "caught"


def at_the_fault(case: Case, finding: dict[str, Any]) -> bool:
    expected, place = case.expected, place_of_fault(case)
    if expected.stage != finding["stage"] and expected.stage not in ("", "train"):
        return False
    if expected.line is False or place is None:
        return True
    if expected.line is None and finding["line"] is None:
        return True
    there = finding["file"] is not None and Path(finding["file"]) == Path(place[0])
    return there and finding["line"] in place[1] if expected.line else True


def table(cells: dict[tuple[str, str], str]) -> str:
    """Kinds of faults by what became of them, for each target."""
    lines = []
    for target in TARGETS:
        counts: dict[str, Counter[str]] = {}
        for (name, on), cell in cells.items():
            expected = CASES[name].expected
            if on == target and cell != "-":
                at_fault = expected.severities.get(target, "may warn") != "may warn"
                fault = expected.kind if at_fault else ""
                counts.setdefault(fault or "sound here", Counter())[cell] += 1
        lines.append(f"{target}:")
        for kind, counter in sorted(
            counts.items(), key=lambda item: (item[0] == "sound here", item[0])
        ):
            parts = ", ".join(f"{count} {cell}" for cell, count in counter.most_common())
            lines.append(f"  {kind:<12}{parts}")
    return "\n".join(lines)


def why(answer: dict[str, Any]) -> str:
    if answer["crash"]:
        return answer["crash"].strip().splitlines()[-1]
    said = {
        f"{target}: {f['kind']} {f['severity']} at {Path(f['file'] or '').name}:{f['line']} [{f['stage']}] {f['message']}"
        for target, verdict in answer["targets"].items()
        for f in verdict["findings"]
        if f["kind"] != "harm"
    }
    return "\n    ".join(sorted(said)) or "nothing was found"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--package", default="image_project")
    parser.add_argument("--only", nargs="+", help="these cases")
    parser.add_argument("--json", type=Path, help="write all answers there")
    parser.add_argument("--time-limit", type=float, default=600, help="seconds for a case")
    options = parser.parse_args()
    engine = importlib.import_module(f"{options.package}.tools.rehearse")
    load_all()
    answers: dict[str, Any] = {}
    cells: dict[tuple[str, str], str] = {}
    for name in options.only or CASES:
        case = CASES[name]
        answers[name] = rehearse(case, engine, options.time_limit)
        judged = {target: judge(case, target, answers[name]) for target in TARGETS}
        cells |= {(name, target): cell for target, cell in judged.items()}
        wrong = [
            f"{target} {cell}" for target, cell in judged.items() if cell not in AS_IT_SHOULD_BE
        ]
        if wrong:
            kind = case.expected.kind or "sound"
            print(f"{name} ({kind}): {', '.join(wrong)}\n    {why(answers[name])}", flush=True)
    bad = [cell for cell in cells.values() if cell not in AS_IT_SHOULD_BE]
    print(table(cells))
    seconds = sum(answer["seconds"] for answer in answers.values())
    print(f"{len(answers)} cases, {len(bad)} cells not as they should be, {seconds:.0f} s")
    if options.json:
        outcome = {
            name: {**a, "cells": {t: cells[name, t] for t in TARGETS}}
            for name, a in answers.items()
        }
        options.json.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
