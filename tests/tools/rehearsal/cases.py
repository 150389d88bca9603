"""What a case of the corpus is: a task with its data, which is sound or has exactly one fault.

Every case is a program that people write, and it trains on the CPU. Where it would fail or stall is
said by its decorator, and the statement at fault by a comment above it, `# fault: NameOfTheCase`.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

TARGETS = ("mps", "cuda", "cpu")


@dataclass(frozen=True)
class Expected:
    """What is true of a case.

    Args:
        kind: of the finding; empty for a sound case.
        severities: of the finding on each target where the fault shows. A target that is left out
            is fine. `flagged` is a warning or a failure, `may warn` at most a warning, and of `any`
            nothing is claimed.
        stage: in which the fault is.
        backward: the fault is in the backward pass of the line.
        also: other kinds that say the same of the line.
        line: the fault has a line; False where none can be named, None where it may be.
        on_cpu: the program runs there; False where it cannot, because of its fault.
        real: what the fault does on a real GPU: fails, stalls (waits for the GPU), or none: it runs,
            and the harm is elsewhere (in a worker, a checkpoint, on another device).
    """

    kind: str = ""
    severities: Mapping[str, str] = field(default_factory=dict)
    stage: str = "train"
    backward: bool = False
    line: bool | None = True
    also: tuple[str, ...] = ()
    on_cpu: bool = True
    real: str = ""


class Task(L.LightningModule):
    """A case: how it is built, trained and fed."""

    expected: ClassVar[Expected]
    settings: ClassVar[dict[str, Any]] = {}  # of the Trainer
    memory: ClassVar[str | None] = None  # of the device
    accept: ClassVar[dict[str, str]] = {}  # the CPU fallbacks that the user accepts

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    @staticmethod
    def data() -> Any:
        """A DataLoader or a LightningDataModule."""
        return batches(torch.randn(8, 16), torch.randint(0, 4, (8,)))


class Linear(Task):
    """One layer and a loss: what a case changes one thing of."""

    net: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 4)

    def training_step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])


Case = type[Task]
CaseOf = TypeVar("CaseOf", bound=Case)
CASES: dict[str, Case] = {}


def sound(mps_since: str = "", **severities: str) -> Callable[[CaseOf], CaseOf]:
    """It trains everywhere; except that on MPS a CPU may compute an operator: `mps="fallback"`.

    Args:
        mps_since: the first PyTorch whose MPS has the operator.
        severities: of what may be said, by target.
    """

    def decorate(case: CaseOf) -> CaseOf:
        if severities.get("mps") == "fallback":
            said = {**severities, "mps": "fails"}
            case.expected = Expected("fallback", _with_kernel(said, mps_since))
        else:
            case.expected = Expected("", severities, line=None)
        return add(case)

    return decorate


def planted(kind: str, **said: Any) -> Callable[[CaseOf], CaseOf]:
    """It has one fault, of this kind. Targets are keywords, and so are the fields of Expected.

    `mps_since` is the first PyTorch in which MPS has the operator, so that nothing is at fault there.
    """
    mps_since = said.pop("mps_since", "")
    severities = {target: said.pop(target) for target in TARGETS if target in said}

    def decorate(case: CaseOf) -> CaseOf:
        case.expected = Expected(kind, _with_kernel(severities, mps_since), **said)
        return add(case)

    return decorate


def _with_kernel(severities: Mapping[str, str], mps_since: str) -> Mapping[str, str]:
    """From the PyTorch on in which MPS has the operator, it is there as on CUDA."""
    if not mps_since or torch.__version__ < mps_since:
        return severities
    return {**severities, "mps": severities.get("cuda", "fine")}


def on(**said: Any) -> dict[str, Any]:
    """What several cases have in common. A string "mps" in their files would be a fault by itself."""
    return said


def add(case: CaseOf) -> CaseOf:
    assert case.__name__ not in CASES, case
    CASES[case.__name__] = case
    return case


def place_of_fault(case: Case) -> tuple[str, range] | None:
    """The file, and the lines of the statement that follows the comment (of a block, its head)."""
    file = Path(inspect.getfile(case))
    text = file.read_text(encoding="utf-8")
    comment = re.search(rf"^ *# fault: {case.__name__}$", text, re.MULTILINE)
    if comment is None:
        return None
    line = text[: comment.start()].count("\n") + 2
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt) and node.lineno == line:
            body = getattr(node, "body", None)
            return str(file), range(line, body[0].lineno if body else (node.end_lineno or line) + 1)
    raise AssertionError(f"no statement follows {comment[0]}")


def batches(*tensors: torch.Tensor, batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size, **options)


def images(channels: int = 3, size: int = 16, classes: int = 4) -> DataLoader[Any]:
    return batches(torch.randn(8, channels, size, size), torch.randint(0, classes, (8,)))


def sequences(length: int = 12, width: int = 8, classes: int = 4) -> DataLoader[Any]:
    return batches(torch.randn(8, length, width), torch.randint(0, classes, (8,)))


def tokens(length: int = 12, vocabulary: int = 32) -> DataLoader[Any]:
    """Inputs, and the same moved by one."""
    text = torch.randint(0, vocabulary, (8, length + 1))
    return batches(text[:, :-1].contiguous(), text[:, 1:].contiguous())


def load_all() -> dict[str, Case]:
    """Every case of this folder, by name."""
    for file in sorted(Path(__file__).parent.glob("*_*.py")):
        importlib.import_module(file.stem)
    return CASES
