"""What `rehearse` knows of operators, held against PyTorch's own lists.

`op_db` has samples for every operator, and `common_mps.py` says which of them PyTorch's own tests
expect to fail on MPS in float32, because nothing implements them there.
"""

import ast
import contextlib
import importlib.util
import sys
import types
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from image_project.tools import known_harm
from image_project.tools.rehearse.calls import DeviceCalls
from image_project.tools.rehearse.fake_hardware import fake_hardware
from image_project.tools.rehearse.meta_mode import MetaMode
from image_project.tools.rehearse.recorder import Recorder
from torch.utils._pytree import tree_leaves, tree_map

pytestmark = pytest.mark.slow

LISTS = Path(torch.__file__).parent / "testing/_internal/common_mps.py"
SAMPLES = 60  # of each operator
WIDE = (torch.float64, torch.complex128)


@pytest.fixture(scope="module")
def operators() -> list[Any]:
    if importlib.util.find_spec("expecttest") is None:  # only its base class is needed
        sys.modules["expecttest"] = types.SimpleNamespace(TestCase=unittest.TestCase)  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return [op for op in op_db if torch.float32 in op.dtypes]


def name(op: Any) -> str:
    return f"{op.name}{op.variant_test_name}"


def listed(function: str, variable: str, *, before: str = "") -> set[str]:
    """The keys with float32 in a list of common_mps.py, which is read: it loads on a Mac only.

    Args:
        before: only those that stand before this comment.
    """
    text = LISTS.read_text(encoding="utf-8")
    (found,) = (
        assigned
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name == function
        for assigned in ast.walk(node)
        if isinstance(assigned, ast.Assign | ast.AnnAssign)
        and ast.unparse(getattr(assigned, "targets", [getattr(assigned, "target", None)])[0])
        == variable
    )
    assert isinstance(found.value, ast.Dict)
    lines = text.splitlines()[: found.end_lineno]
    last = next((i for i, line in enumerate(lines, 1) if before and before in line), len(lines))
    return {
        ast.literal_eval(key)
        for key, dtypes in zip(found.value.keys, found.value.values, strict=True)
        if key is not None and key.lineno <= last
        if ast.unparse(dtypes) == "None" or "float32" in ast.unparse(dtypes)
    }


class Trial:
    """Operators run as on MPS: which of them does it lack?"""

    def __init__(self, *, limits: bool) -> None:
        self.limits = known_harm.LIMITS if limits else ()
        self.device = torch.device("mps", 0)
        self.recorder = Recorder(self.device)
        self.mode = MetaMode(self.device, self.recorder, limit=None)
        self.calls = DeviceCalls(self.device, self.recorder)

    def __call__(self, op: Any, *, grad: bool, wide: bool) -> tuple[set[str], set[str]]:
        """What some sample lacks in the forward and in the backward pass.

        Args:
            wide: with the samples that ask for float64 or complex128 by an argument.
        """
        self.recorder.findings.clear()
        for sample in self.samples(op, grad, wide):
            with contextlib.suppress(Exception):  # a sample that fails everywhere tells nothing
                self.once(op, sample, grad)
        lacking = [
            found
            for found in self.recorder.findings
            if found.kind in ("operator", "fallback", "dtype")
        ]
        forward = {str(found.operator) for found in lacking if not found.backward}
        return forward, {str(found.operator) for found in lacking if found.backward}

    def samples(self, op: Any, grad: bool, wide: bool) -> Iterator[Any]:
        with warnings.catch_warnings(), contextlib.suppress(Exception):  # some cannot be made
            warnings.simplefilter("ignore")
            samples = iter(op.sample_inputs("cpu", torch.float32, requires_grad=grad))
            for _, sample in zip(range(SAMPLES), samples, strict=False):
                leaves = tree_leaves((sample.input, sample.args, sample.kwargs))
                asked = [leaf for leaf in leaves if isinstance(leaf, torch.dtype)]
                asked += [leaf.dtype for leaf in leaves if isinstance(leaf, torch.Tensor)]
                if wide or not any(dtype in WIDE for dtype in asked):
                    yield sample

    def once(self, op: Any, sample: Any, grad: bool) -> None:
        def move(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return self.mode.moved(leaf.detach()).requires_grad_(leaf.requires_grad)

        with (
            pytest.MonkeyPatch.context() as patch,
            fake_hardware("mps", lambda *args: None, self.mode.note_autocast),
            torch.autograd.set_multithreading_enabled(False),
            self.calls,
            self.mode,
        ):
            patch.setattr(known_harm, "LIMITS", self.limits)
            given, args, kwargs = tree_map(move, (sample.input, sample.args, sample.kwargs))
            if "device" in kwargs:
                kwargs = {**kwargs, "device": self.device}
            result = op(given, *args, **kwargs)
            if grad:
                tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
                outputs = [tensor for tensor in tensors if tensor.requires_grad]
                torch.autograd.backward(outputs, [torch.ones_like(leaf) for leaf in outputs])


def table(title: str, found: set[str], missed: set[str], alarms: dict[str, set[str]]) -> str:
    lines = [f"{title}: {len(found)} of {len(found | missed)} found, {len(alarms)} alarms"]
    lines += [f"  missed  {key}" for key in sorted(missed)]
    lines += [f"  alarm   {key}: {', '.join(sorted(said))}" for key, said in sorted(alarms.items())]
    return "\n".join(lines)


@pytest.mark.parametrize(("limits", "at_most"), [(False, 3), (True, 1)])
def test_the_operators_that_mps_lacks_are_found(
    operators: list[Any], limits: bool, at_most: int
) -> None:
    """Without and with the one limit of shapes that known_harm.py lists.

    Alarms are what PyTorch does not expect to fail. Those left have no kernel for MPS in its table:
    its MPS build registers linalg_svd and embedding_renorm_ to go to the CPU whatever the fallback
    variable says (MPSFallback.mm), so that what `rehearse` says of them holds; how linalg_lu_solve
    gets there, no file of the wheel tells.
    """
    lists = ("UNIMPLEMENTED_XFAILLIST", "UNDEFINED_XFAILLIST", "ON_MPS_XFAILLIST")
    missing, *others = (listed("mps_ops_modifier", variable) for variable in lists)
    expected = missing | set().union(*others) | {name(op) for op in operators if expects_mps(op)}
    trial = Trial(limits=limits)
    said = {name(op): trial(op, grad=False, wide=name(op) in missing)[0] for op in operators}
    lacking = {key for key, lacks in said.items() if lacks}
    found, missed = missing & lacking, missing & set(said) - lacking
    alarms = {key: said[key] for key in lacking - expected}
    print(table(f"forward, limits {limits}", found, missed, alarms))
    if torch.__version__ < "2.14":
        assert len(found | missed) == 56  # later, MPS has more and more of them
    assert found
    assert len(missed) <= at_most
    assert len(set().union(*alarms.values())) <= 3, "distinct operators that raise an alarm"


def test_the_operators_that_mps_lacks_in_the_backward_are_found(operators: list[Any]) -> None:
    """Of those that PyTorch lists as unimplemented, what has a backward at all: on the CPU."""
    unimplemented = listed("mps_ops_grad_modifier", "XFAILLIST_GRAD", before="# Correctness issues")
    known = listed("mps_ops_grad_modifier", "XFAILLIST_GRAD")
    forward = listed("mps_ops_modifier", "UNIMPLEMENTED_XFAILLIST")
    trial = Trial(limits=True)
    found, missed, alarms = set(), set(), {}
    for op in operators:
        if not op.supports_autograd or name(op) in forward:
            continue
        lacks_forward, lacks = trial(op, grad=True, wide=False)
        if name(op) in unimplemented and has_backward(trial, op):
            (found if lacks or lacks_forward else missed).add(name(op))
        elif lacks - lacks_forward and name(op) not in known:
            alarms[name(op)] = lacks
    print(table("backward", found, missed, alarms))
    if torch.__version__ < "2.14":
        assert found >= {"_upsample_bilinear2d_aa"}
    assert len(set().union(*alarms.values())) <= 3, "distinct operators that raise an alarm"


def expects_mps(op: Any) -> bool:
    """Whether op_db itself says that all of its common tests fail on MPS."""
    return any(
        decorated.device_type == "mps"
        and decorated.test_name is None
        and decorated.dtypes is None
        and unittest.expectedFailure in decorated.decorators
        for decorated in op.decorators
        if hasattr(decorated, "device_type")
    )


def has_backward(trial: Trial, op: Any) -> bool:
    for sample in trial.samples(op, True, False):
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            leaves = tree_leaves(op(sample.input, *sample.args, **sample.kwargs))
            outputs = [x for x in leaves if isinstance(x, torch.Tensor) and x.requires_grad]
            if outputs:
                torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
                return True
    return False
