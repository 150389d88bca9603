"""What `rehearse` said of a device against what happened there.

python real.py cuda --json outcomes.json          on the device
python rehearsed.py --json answers.json           anywhere
python confusion.py cuda outcomes.json answers.json [--json table.json]

Exit status 1 if a case that was called fine failed, or one that was said to fail did not.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

SAID = ("fine", "warning", "unknown", "fails")
ELSEWHERE = ("workers", "checkpoint", "vendor", "harm")
HAPPENED = ("ran", "waited", "failed")


def happened(outcome: dict[str, Any]) -> str:
    if not outcome["ran"]:
        return "failed"
    return "waited" if outcome["waits"] else "ran"


def said(answer: dict[str, Any], target: str) -> str:
    """The verdict on what shows when a task is trained; a worker or a checkpoint fails elsewhere.

    Only on CUDA are the cases given no more memory than they say.
    """
    verdict = answer["targets"].get(target)
    if verdict is None:
        return "unknown"
    shown = [
        finding["severity"]
        for finding in verdict["findings"]
        if finding["kind"] not in ELSEWHERE and (finding["kind"] != "memory" or target == "cuda")
    ]
    return max(shown, key=SAID.index, default="fine")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=("mps", "cuda", "cpu"))
    parser.add_argument("outcomes", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    outcomes = json.loads(options.outcomes.read_text(encoding="utf-8"))
    answers = json.loads(options.answers.read_text(encoding="utf-8"))
    cells: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in outcomes.keys() & answers.keys():
        cells[said(answers[name], options.target)][happened(outcomes[name])].append(name)
    print(f"said / happened on {options.target}" + "".join(f"{word:>9}" for word in HAPPENED))
    for word in SAID:
        counts = "".join(f"{len(cells[word][other]):>9}" for other in HAPPENED)
        print(f"{word:<{24 + len(options.target)}}{counts}")
    wrong = {
        "called fine, and failed": cells["fine"]["failed"] + cells["warning"]["failed"],
        "called fine, and waited": cells["fine"]["waited"],
        "said to fail, and ran": cells["fails"]["ran"] + cells["fails"]["waited"],
    }
    for what, names in wrong.items():
        print(f"{what}: {', '.join(sorted(names)) or 'none'}")
    if options.json:
        options.json.write_text(json.dumps({**cells, **wrong}, indent=2) + "\n", encoding="utf-8")
    sys.exit(bool(wrong["called fine, and failed"] or wrong["said to fail, and ran"]))


if __name__ == "__main__":
    main()
