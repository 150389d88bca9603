"""Whether the target takes the precision, strategy and devices, by the engine's own policy."""

from collections.abc import Mapping
from typing import Any

from ...engine.device import Gpu, Hardware, Requested, Settings, resolve
from ...engine.errors import UserError
from .findings import Finding

# Machines as people have them; no hardware is asked.
MACHINES = {
    "mps": Hardware(system="Darwin", cpu="arm", cores=8, mps="Apple M3"),
    "cuda": Hardware(system="Linux", cpu="EPYC", cores=64, cuda=(Gpu("H100", (9, 0)),) * 8),
    "cpu": Hardware(system="Linux", cpu="EPYC", cores=16),
}


def settings_for(target: str, want: Requested) -> tuple[Settings, list[Finding]]:
    """Return what the policy answers on such a machine; what it refuses is a finding.

    Args:
        want: what the config asks for, whose accelerator is `target`.
    """
    try:
        return resolve(want, MACHINES[target]), []
    except UserError as refusal:
        plain = Requested(accelerator=target)
        message, _, fix = str(refusal).partition(". ")
        found = Finding("policy", "fails", message, fix or "leave it to auto")
        return resolve(plain, MACHINES[target]), [found]


def requested(target: str, trainer: Mapping[str, Any]) -> Requested:
    """Return what settings of a Trainer request on `target`."""
    asked = {k: trainer[k] for k in ("precision", "strategy", "devices") if k in trainer}
    return Requested(accelerator=target, **asked)
