"""Versions and settings that are known to do harm, as data with their sources."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Harm:
    """From version `since` up to, and without, `before`; an empty one is no limit."""

    package: str
    since: str
    before: str
    what: str
    source: str
    install: str  # a requirement that is free of it
    state: str = "wrong"
    system: str = ""  # only there
    python: str = ""  # only from this Python on
    never_import: bool = False


HARMS = (
    Harm(
        "lightning",
        "2.6.2",
        "2.6.4",
        "These releases stole passwords and keys when imported: change every one that was here.",
        "https://github.com/advisories/GHSA-w37p-236h-pfx3",
        "lightning>=2.6.6",
        never_import=True,
    ),
    Harm(
        "lightning",
        "",
        "2.6.6",
        "Loading a checkpoint of somebody else's can run their code.",
        "https://github.com/Lightning-AI/pytorch-lightning/pull/21832",
        "lightning>=2.6.6",
        state="warning",
    ),
    Harm(
        "torch",
        "",
        "2.6",
        "torch.load(weights_only=True) can run the code of whoever made the file.",
        "https://github.com/advisories/GHSA-53q9-r3pm-6pq6",
        "torch>=2.11",
    ),
    Harm(
        "torch",
        "",
        "2.13",
        "On MPS, causal attention in half precision lets a query see up to three future tokens.",
        "https://github.com/pytorch/pytorch/issues/195910",
        "torch>=2.13",
        system="Darwin",
    ),
    Harm(
        "torch",
        "",
        "2.14",
        "On MPS, baddbmm with beta=0 gives nan where its unused input holds one.",
        "https://github.com/pytorch/pytorch/issues/187521",
        "torch>=2.14",
        state="warning",
        system="Darwin",
    ),
    Harm(
        "hydra-core",
        "",
        "1.4",
        "No Hydra application starts on Python 3.14 (argparse refuses its help).",
        "https://github.com/facebookresearch/hydra/issues/3121",
        "",  # of Hydra there is none; the Python must be another
        python="3.14",
    ),
    Harm(
        "omegaconf",
        "2.4",
        "",
        "Hydra 1.3 needs OmegaConf 2.3.",
        "https://pypi.org/project/hydra-core/1.3.8/",
        "omegaconf>=2.3,<2.4",
    ),
)

# Set by people who met an error: with these values each hides one, and then does more harm.
HARMFUL_VARIABLES = {
    "KMP_DUPLICATE_LIB_OK": (
        "true|yes|on|1",
        "Two OpenMP runtimes in one process can crash or compute wrong results; this hides it.",
    ),
    "PYTORCH_MPS_HIGH_WATERMARK_RATIO": (
        r"0(\.0*)?",
        "MPS without a limit can bring the whole Mac to a standstill: lower data.batch_size.",
    ),
    "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": (
        "true|yes|on|1",
        "Forked workers hang or crash with MPS, and this hides why: leave them spawned.",
    ),
}

# Variables by which Lightning takes this for one process of several.
LAUNCHERS = {
    "TORCHELASTIC_RUN_ID": "torchrun",
    "WORLD_SIZE": "a launcher such as torchrun",
    "LSB_JOBID": "LSF",
    "OMPI_COMM_WORLD_SIZE": "MPI",
}


def number(version: str) -> tuple[int, ...]:
    """2.13.0+cpu is (2, 13, 0); what follows the numbers does not matter to any row here."""
    return tuple(
        int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version, maxsplit=1)[0])
    )


def versions_with_harm(versions: dict[str, str], system: str = "", python: str = "") -> list[Harm]:
    def meets(harm: Harm) -> bool:
        found = number(versions.get(harm.package, ""))
        return (
            bool(found)
            and number(harm.since) <= found
            and (not harm.before or found < number(harm.before))
            and harm.system in ("", system)
            and (not harm.python or number(python) >= number(harm.python))
        )

    return [harm for harm in HARMS if meets(harm)]
