"""Is this machine set up right? Each finding comes with its fix as a command.

    python -m <package> doctor          # a table, and exit status 1 if something is wrong
    python -m <package> doctor --json   # the same for programs

It is for the day when nothing else starts. So nothing here imports more than Python itself, PyTorch
and all that needs it are looked at in a process of their own, and old Pythons can read the sources.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from . import gpu, machine
from .facts import Facts, probe
from .row import Row


def judge(facts: Facts) -> list[Row]:
    """Return all rows, from facts alone: what is found here, or what a test makes up."""
    return [
        machine.python(facts),
        *machine.architecture(facts),
        *machine.macos(facts),
        *machine.packages(facts),
        *machine.harms(facts),
        gpu.build(facts),
        *gpu.driver(facts),
        *gpu.kernels(facts),
        *gpu.intel(facts),
        *gpu.devices(facts),
        gpu.bf16(facts),
        machine.memory(facts),
        machine.cores(facts),
        *machine.shared_memory(facts),
        *machine.open_files(facts),
        machine.openmp(facts),
        *machine.variables(facts),
        *gpu.policy(facts),
    ]


def table(rows: list[Row]) -> str:
    """As plain text, since a command that a frame has wrapped can no longer be copied."""
    width = max(len(row.name) for row in rows)
    indent = " " * 9
    lines = []
    for row in rows:
        remark = f" ({row.why})" if row.why and row.state == "ok" else ""
        lines.append(f"{row.state:<9}{row.name:<{width}}  {row.found}{remark}".rstrip())
        if row.why and row.state != "ok":
            lines.append(f"{indent}{row.why}")
        if row.fix:
            lines.append(f"{indent}fix: {row.fix}")
    wrong, warnings = (sum(row.state == state for row in rows) for state in ("wrong", "warning"))
    lines.append(f"\n{wrong} wrong, {warnings} to know about, {len(rows)} looked at.")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="doctor", description="Is this machine set up right? Each finding has its fix."
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(arguments)
    rows = judge(probe())
    wrong = any(row.state == "wrong" for row in rows)
    if options.json:
        print(json.dumps({"ok": not wrong, "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        print(table(rows))
    sys.exit(wrong)


if __name__ == "__main__":
    main()
