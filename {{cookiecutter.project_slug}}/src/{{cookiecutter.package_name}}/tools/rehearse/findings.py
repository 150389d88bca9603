"""What a rehearsal says: findings, and the verdict that follows from them."""

from dataclasses import dataclass, replace

# From good to bad; a verdict is the worst of its findings. `unknown` is never `fine`.
SEVERITIES = ("fine", "warning", "unknown", "fails")

KINDS = {
    "device": "a tensor on another device than the model",
    "dtype": "float64 or complex128, which MPS does not have",
    "operator": "an operator that the target does not have",
    "fallback": "an operator that MPS lacks and the CPU computes, while the GPU waits",
    "sync": "a line of a step that makes the CPU wait for the GPU",
    "workers": "what a worker process cannot be given",
    "loader": "an option of a DataLoader that the target does not take",
    "checkpoint": "what does not come back from a checkpoint",
    "policy": "a precision, strategy or number of devices that the target refuses",
    "vendor": "code that is tied to one kind of device",
    "memory": "more memory than there is",
    "harm": "an operator that gives wrong results in this version",
    "error": "a step that fails on every device",
    "parity": "results that differ from those of the CPU",
    "undecided": "what could not be decided here",
}


@dataclass(frozen=True)
class Finding:
    """One thing that stands in the way, where it is, and what to do about it."""

    kind: str  # of KINDS
    severity: str  # of SEVERITIES
    message: str
    fix: str
    file: str | None = None
    line: int | None = None
    operator: str | None = None
    stage: str = ""  # train, val, test, predict; empty outside of a step
    backward: bool = False


@dataclass(frozen=True)
class Verdict:
    """What was found for one target."""

    target: str
    how: str  # how it was checked
    findings: list[Finding]
    memory: str = ""  # what a step needs there
    skipped: bool = False  # the experiment's YAML says so

    @property
    def verdict(self) -> str:
        if self.skipped:
            return "skipped"
        severities = [finding.severity for finding in self.findings]
        return max(severities, key=SEVERITIES.index, default="fine")


def merged(findings: list[Finding]) -> list[Finding]:
    """Return each finding once, at its worst: several steps meet the same line."""
    kept: dict[tuple[object, ...], Finding] = {}
    for finding in findings:
        place: tuple[object, ...] = finding.kind, finding.file, finding.line, finding.operator
        if finding.file is None or finding.kind == "error":
            place = (*place, finding.message)
        worst = kept.setdefault(place, finding)
        if SEVERITIES.index(finding.severity) > SEVERITIES.index(worst.severity):
            kept[place] = replace(finding, stage=worst.stage)
    return sorted(kept.values(), key=lambda finding: -SEVERITIES.index(finding.severity))
