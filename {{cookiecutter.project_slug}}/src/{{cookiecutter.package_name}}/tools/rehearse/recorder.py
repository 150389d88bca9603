"""What stands out while a program is rehearsed, each with the line that it comes from."""

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from ..known_harm import Limit
from . import operators
from .findings import Finding
from .harm import CALLS, harm_of, limits_of
from .memory import Meter
from .places import Place, current
from .standin import StandIn, home

MADE_ELSEWHERE = "make it with device=self.device or like another tensor, or register_buffer it"
ATEN = torch.ops.aten
WIDE = {torch.float64: "float64", torch.complex128: "complex128"}


@dataclass
class Recorder:
    """Look at every operator before and after it runs.

    Args:
        target: what is rehearsed for.
        accept: operators of which the user accepts that the CPU computes them, with reasons.
    """

    target: torch.device
    accept: dict[str, str] = field(default_factory=dict)
    stage: str = ""  # train, val, test or predict while such a step runs
    findings: list[Finding] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)  # of the target that were met
    guesses: list[tuple[Place | None, str]] = field(default_factory=list)
    places: dict[int, Place | None] = field(default_factory=dict)  # of nodes of the backward pass
    meter: Meter = field(init=False)  # of the memory on the target

    def __post_init__(self) -> None:
        self.meter = Meter(self.target)

    def watch(
        self, func: OpOverload, given: list[Tensor], place: torch.device, layout: Any
    ) -> None:
        """Look at an operator before it runs: what it is given, and whether the target has it.

        Args:
            func: the operator.
            given: the tensors that it takes.
            place: where its result is going to live.
            layout: of its result, where that is given.
        """
        if torch.is_grad_enabled() and torch._C._current_autograd_node() is None:
            # PyTorch numbers the nodes of the backward pass as the forward pass makes them.
            self.places.setdefault(torch.autograd._get_sequence_nr() - 1, current()[0])
        if self.target.type == "cpu":
            return
        self._devices(func, given)
        if place == self.target or any(home(tensor) == self.target for tensor in given):
            self._synchronisation(func, given, place)
            self._kernel(func, given, layout)

    def made(self, func: OpOverload, given: list[Tensor], result: Any, needed_values: bool) -> None:
        """Look at what an operator has made.

        Args:
            func: the operator.
            given: the tensors that it took.
            result: what it returned.
            needed_values: its shape could be told from values only.
        """
        self.meter.made(result)
        first = next((leaf for leaf in tree_leaves(result) if isinstance(leaf, StandIn)), None)
        if first is not None and first.home == self.target:
            new = not (func.is_view or func._schema.is_mutable)
            self._limits(_name(func), given, first, new=new)
        reads = needed_values and torch.Tag.dynamic_output_shape in func.tags
        on_target = all(home(tensor) == self.target for tensor in given)  # else the CPU's are read
        if reads and on_target and not _indexes(func):
            self._sync(_name(func))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            if not isinstance(tensor, StandIn):
                if not given:
                    tensor.made_at = current()[0]  # type: ignore[attr-defined]
            elif tensor.dtype in WIDE and self.target.type == "mps" and tensor.home == self.target:
                was = any(t.dtype in WIDE and home(t) == self.target for t in given)
                # PyTorch makes tolerances (numbers) and unused buffers as the device can have them.
                own = tensor.numel() == 0 or (not given and tensor.dim() == 0)
                if not was and not own:
                    self._wide(func, tensor)

    def event(self, kind: str, what: str) -> None:
        """Note what a call from Python does without an operator: kind, and what was called."""
        if kind == "sync" and (what != "tolist" or self.stage != "predict"):
            self._sync(what)
        elif kind == "vendor":
            self.add(
                kind,
                "fails",
                f"asks for {what}, which is not there on {self.target.type}",
                "make it on self.device, or like another tensor",
            )
        elif kind == "device":
            self.add(
                kind,
                "fails",
                f"{what}() of a tensor on {self.target.type}",
                f"move it to the CPU first: .cpu().{what}(), and not in a training step",
                operator=what,
            )

    def called(self, name: str, given: list[Tensor]) -> None:
        """Note a function or operator, by its bare name, if it is known to do harm."""
        if harm := harm_of(name, given, self.target.type):
            self.add("harm", "warning", *harm, operator=name)
        if name in CALLS and any(home(tensor) == self.target for tensor in given):
            self._limits(name, given, None)

    def _limits(
        self, name: str, given: list[Tensor], result: Tensor | None, *, new: bool = True
    ) -> None:
        for limit in limits_of(name.rpartition(".")[2], given, result, self.target.type):
            general = not limit.operator  # one line is enough of what every later operator repeats
            if not general or (new and limit not in self.limits):
                self.limits.append(limit)
                what = f"{name} on {self.target.type} {limit.what} ({limit.source})"
                self.add("operator", limit.severity, what, limit.fix, operator=name)

    def guessed(self, what: Any) -> None:
        """Note that a value was asked for that is not known."""
        place, library = current()
        if library.startswith("lightning"):
            return  # to show it in a bar or a file: nothing that is computed follows from it
        self.guesses.append((None if library else place, str(what)))

    def shown(self, tensor: Tensor) -> None:
        """Note that a tensor was printed."""
        if home(tensor) == self.target:
            self._sync("print")

    def add(self, kind: str, severity: str, message: str, fix: str, operator: str = "") -> None:
        place, backward = self._place()
        file, line = place or (None, None)
        found = Finding(
            kind, severity, message, fix, file, line, operator or None, self.stage, backward
        )
        if found not in self.findings:
            self.findings.append(found)

    def _place(self) -> tuple[Place | None, bool]:
        """Return the line that runs; in the backward pass, the line of the forward pass."""
        node = torch._C._current_autograd_node()
        here, library = current()
        if node is not None and here is not None and not library:
            return here, True  # in an autograd.Function of the user's
        if node is not None and (place := self.places.get(node._sequence_nr())) is not None:
            return place, True
        return here, node is not None

    def _devices(self, func: OpOverload, given: list[Tensor]) -> None:
        here = [tensor for tensor in given if home(tensor) == self.target]
        others = [t for t in given if home(t) != self.target and t.dim() > 0]
        others = [t for t in others if getattr(t, "reported", None) is not self]
        if not here or not others or func in (ATEN.copy_.default, ATEN._to_copy.default):
            return
        indexed = given[0] if _indexes(func) else None
        if indexed is not None and home(indexed) == self.target:
            others = [t for t in others if t.dtype.is_floating_point]  # an index may be on the CPU
        if not others or not (operators.checks_devices(func) or indexed is not None):
            return
        for tensor in others:  # what it becomes in place is the same fault
            tensor.reported = self  # type: ignore[attr-defined]
        made_at = getattr(others[0], "made_at", None)
        where = f", made at {os.path.relpath(made_at[0])}:{made_at[1]}," if made_at else ""
        self.add(
            "device",
            "fails",
            f"a tensor on the CPU {tuple(others[0].shape)}{where} meets one on {self.target.type}",
            MADE_ELSEWHERE,
            _name(func),
        )

    def _wide(self, func: OpOverload, tensor: Tensor) -> None:
        self.add(
            "dtype",
            "fails",
            f"makes {WIDE[tensor.dtype]} {tuple(tensor.shape)}, which MPS does not have",
            "use float32 (dtype=torch.float32, .float(), numpy's astype('float32'))",
            _name(func),
        )

    def part(self, func: OpOverload, given: list[Tensor], layout: Any) -> None:
        """Look at an operator that another one calls: does the target have it?"""
        if self.target.type != "cpu" and any(home(tensor) == self.target for tensor in given):
            self._kernel(func, given, layout)

    def _kernel(self, func: OpOverload, given: list[Tensor], layout: Any) -> None:
        target = self.target.type
        layouts = [tensor.layout for tensor in given] + [layout] * (layout is not None)
        sparse = {_layout(layout) for layout in layouts} - {""}
        if operators.has(func, target, layout=next(iter(sparse), "")):
            self.called(func._schema.name.partition("::")[2], given)
            return
        name = _name(func)
        short = name.removeprefix("aten.").lstrip("_")
        falls_back = target == "mps" and os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1"
        if not falls_back:
            self.add(
                "operator",
                "fails",
                f"{name} has no kernel on {target}",
                "compute it in another way, or on the CPU: x.cpu(), the operator, .to(self.device)",
                name,
            )
            return
        accepted = self.accept.get(short)
        severity = "fails" if self.stage in ("", "train") and not accepted else "warning"
        self.add(
            "fallback",
            severity,
            f"{name} has no kernel on MPS: the CPU computes it, while the GPU waits for both copies"
            + (f" (accepted: {accepted})" if accepted else ""),
            f"compute it in another way, or accept it: rehearse.accept.{short}='why'",
            name,
        )

    def _synchronisation(self, func: OpOverload, given: list[Tensor], place: torch.device) -> None:
        if not any(home(tensor) == self.target for tensor in given):
            return
        reads = torch.Tag.data_dependent_output in func.tags
        if _indexes(func):
            reads = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in given[1:])
            # x[mask] = 0 fills on CUDA, where PyTorch leaves the number on the CPU.
            reads = reads and not (self.target.type == "cuda" and given[-1].numel() == 1)
        to_cpu = place.type == "cpu" and func in (ATEN._to_copy.default, ATEN.copy_.default)
        # Predictions have to leave the device.
        if reads or (to_cpu and self.stage != "predict"):
            self._sync(_name(func))

    def _sync(self, what: str) -> None:
        place, library = current()
        if self.target.type == "cpu" or library or place is None or not self.stage:
            return
        self.add(
            "sync",
            "warning",
            f"{what} makes the CPU wait for the {self.target.type} device in every step",
            "keep it on the device (self.log takes tensors, torch.where takes masks)",
            what,
        )


def _name(func: OpOverload) -> str:
    return f"{func.namespace}.{func._schema.name.partition('::')[2]}"


def _layout(layout: torch.layout) -> str:
    if layout == torch.strided:
        return ""
    return "Sparse" if layout == torch.sparse_coo else "SparseCsr"


def _indexes(func: OpOverload) -> bool:
    """Return whether this is x[i] or x[i] = y, which take a list of optional indices."""
    return any(
        str(argument.type) == "List[Optional[Tensor]]" for argument in func._schema.arguments
    )
