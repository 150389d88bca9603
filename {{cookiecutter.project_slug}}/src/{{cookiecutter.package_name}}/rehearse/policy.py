"""Whether the target takes the precision, strategy and devices: device.py's own policy, asked."""

from collections.abc import Mapping
from typing import Any

from ..device import Choice, Gpu, Probe, Request, choose
from ..errors import UserError
from .findings import Finding

# Machines as people have them; no hardware is asked.
MACHINES = {
    "mps": Probe(system="Darwin", cpu="arm", cores=8, mps="Apple M3"),
    "cuda": Probe(system="Linux", cpu="EPYC", cores=64, cuda=(Gpu("H100", (9, 0)),) * 8),
    "cpu": Probe(system="Linux", cpu="EPYC", cores=16),
}


def choice_for(target: str, want: Request) -> tuple[Choice, list[Finding]]:
    """What the policy answers on such a machine; what it refuses is a finding.

    Args:
        want: what the config asks for, whose accelerator is `target`.
    """
    try:
        return choose(want, MACHINES[target]), []
    except UserError as refusal:
        plain = Request(accelerator=target, in_memory=want.in_memory)
        message, _, fix = str(refusal).partition(": ")
        found = Finding("policy", "fails", message, fix or "leave it to auto")
        return choose(plain, MACHINES[target]), [found]


def request(target: str, trainer: Mapping[str, Any]) -> Request:
    """What settings of a Trainer ask for on `target`."""
    asked = {k: trainer[k] for k in ("precision", "strategy", "devices") if k in trainer}
    return Request(accelerator=target, **asked)
