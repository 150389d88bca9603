"""What versions and settings are known to do harm: data, each row with its source.

`doctor` reports the versions that are installed, `rehearse` the operators that a program calls.
This file imports nothing but Python, since doctor runs where nothing is installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

PYTORCH = "https://github.com/pytorch/pytorch/blob/main/aten/src/ATen"


@dataclass(frozen=True)
class Harm:
    """A fault of a package from version `since` up to, and without, `before`.

    Args:
        package: as pip names it.
        since: empty for the first version.
        before: the first version without it; empty if there is none yet.
        what: it does.
        source: of this knowledge.
        install: a requirement that is free of it.
        state: wrong or warning.
        system: the only one that is affected, as platform.system() names it; Darwin is MPS.
        python: the first Python that is affected.
        never_import: importing it does harm by itself.
        operators: by which `rehearse` finds it in a program; functions by their bare names.
        half: only in float16 and bfloat16.
        channels_last: only with such an input.
        fix: in the program, in place of `install`.
    """

    package: str
    since: str
    before: str
    what: str
    source: str
    install: str = ""
    state: str = "wrong"
    system: str = ""
    python: str = ""
    never_import: bool = False
    operators: tuple[str, ...] = ()
    half: bool = False
    channels_last: bool = False
    fix: str = ""


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
        operators=("scaled_dot_product_attention",),
        half=True,
        fix="use torch 2.13 or newer, or trainer.precision=32-true",
    ),
    Harm(
        "torch",
        "",
        "2.13",
        "On MPS, 16-mixed sets all gradients to zero when it unscales them: the loss never falls.",
        "https://github.com/pytorch/pytorch/pull/184286",
        "torch>=2.13",
        system="Darwin",
        operators=("_amp_foreach_non_finite_check_and_unscale_",),
        half=True,
        fix="use trainer.precision=32-true or bf16-mixed",
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
        "torch",
        "",
        "",
        "On MPS, the backward of batch norm is wrong for channels_last inputs.",
        "https://github.com/pytorch/pytorch/issues/175189",
        system="Darwin",
        operators=("native_batch_norm_backward", "batch_norm_backward"),
        channels_last=True,
        fix="leave channels_last out on MPS",
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


@dataclass(frozen=True)
class Limit:
    """Shapes that an operator refuses on a target that has it.

    Args:
        target: the device.
        operator: by its bare name; empty for all that make a new tensor.
        refuses: of the shapes that it is given, the shape of its result, and the result's bytes.
        what: it does.
        fix: in the program.
        source: of this knowledge.
        severity: of the finding.
        called: seen as a call from Python, before PyTorch takes it apart, and without a result.
    """

    target: str
    operator: str
    refuses: Callable[[Sequence[Sequence[int]], Sequence[int], int], bool]
    what: str
    fix: str
    source: str
    severity: str = "fails"
    called: bool = False


def _uneven(given: Sequence[Sequence[int]], result: Sequence[int], size: int) -> bool:
    pairs = list(zip(given[0][-2:], result[-2:], strict=True))
    shrinks = all(taken % made == 0 for taken, made in pairs)
    return not (shrinks or all(made % taken == 0 for taken, made in pairs))


def _grows_and_shrinks(given: Sequence[Sequence[int]], result: Sequence[int], size: int) -> bool:
    (height, width), (new_height, new_width) = given[0][-2:], result[-2:]
    return (height - new_height) * (width - new_width) < 0


def _projects(given: Sequence[Sequence[int]], result: Sequence[int], size: int) -> bool:
    states = given[1:3]  # of packed sequences the batch sizes: these do not come to the kernel
    return all(len(state) == 3 for state in states) and states[0][2] != states[1][2]


LIMITS = (
    Limit(
        "mps",
        "_adaptive_avg_pool2d",
        _uneven,
        "takes only inputs that the output size divides, or the other way",
        "choose an output size that divides the input's, or interpolate",
        "https://github.com/pytorch/pytorch/issues/96056",
    ),
    Limit(
        "mps",
        "adaptive_max_pool2d",
        _grows_and_shrinks,
        "takes no output that is larger than the input in one direction and smaller in the other",
        "choose another output size, or interpolate",
        f"{PYTORCH}/native/mps/operations/AdaptivePooling.mm",
    ),
    Limit(
        "mps",
        "lstm",
        _projects,
        "takes no proj_size",
        "leave proj_size out, and put an nn.Linear behind it",
        f"{PYTORCH}/native/mps/operations/RnnOps.mm",
        called=True,
    ),
    Limit(
        "mps",
        "convolution",
        lambda given, result, size: max(result, default=0) > 2**16,
        "takes no more than 65,536 channels or positions before macOS 15.1",
        "use macOS 15.1 or newer, or split it",
        "https://github.com/pytorch/pytorch/pull/140726",
        severity="warning",
    ),
    Limit(
        "mps",
        "",
        lambda given, result, size: len(result) > 16,
        "makes a tensor of more than 16 dimensions, the most there can be",
        "join some of the dimensions",
        f"{PYTORCH}/mps/EmptyTensor.cpp",
    ),
    Limit(
        "mps",
        "",
        lambda given, result, size: size > 2**32,
        "makes a tensor of more than 4 GB, with which some operators end the process",
        "lower data.batch_size, and raise trainer.accumulate_grad_batches",
        "https://github.com/pytorch/pytorch/issues/149325",
        severity="warning",
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
    """Return (2, 13, 0) for 2.13.0+cpu; no row needs what follows the numbers."""
    return tuple(
        int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version, maxsplit=1)[0])
    )


def affects(harm: Harm, version: str) -> bool:
    found = number(version)
    below = not harm.before or found < number(harm.before)
    return bool(found) and number(harm.since) <= found and below


def versions_with_harm(versions: dict[str, str], system: str = "", python: str = "") -> list[Harm]:
    """Return what is known of these versions, except what only a program can avoid.

    Args:
        versions: of the packages that are installed.
        system: as platform.system().
        python: its version.
    """
    return [
        harm
        for harm in HARMS
        if affects(harm, versions.get(harm.package, ""))
        and (harm.before or not harm.operators)
        and harm.system in ("", system)
        and (not harm.python or number(python) >= number(harm.python))
    ]
