"""Which operators a backend has, read from the table that the installed PyTorch was built from.

Every wheel ships `native_functions.yaml`, whatever it was built for: so a wheel for the CPU knows
what MPS and CUDA have. No operator is named here.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchgen
import yaml
from torch._ops import OpOverload

TABLE = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
BACKENDS = {"mps": "MPS", "cuda": "CUDA", "cpu": "CPU"}

# A kernel for all backends, made of other operators.
ANY_BACKEND = ("CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
DECOMPOSED = "CompositeImplicitAutograd"  # before it gets to a backend


def has(op: OpOverload, target: str, *, layout: str = "") -> bool:
    """Return whether `target` has a kernel for an operator.

    Args:
        op: as a dispatch mode meets it.
        target: mps, cuda or cpu.
        layout: Sparse or SparseCsr, where one of the tensors is.
    """
    backend = f"{layout}{BACKENDS[target]}"
    if op.namespace != "aten":  # another library's, known once that is loaded
        keys = (DECOMPOSED, ANY_BACKEND[0], backend)
        return any(torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), k) for k in keys)
    return _has(op.name().removeprefix("aten::"), backend)


@functools.cache
def _has(name: str, backend: str) -> bool:
    entry = _table().get(name)
    if entry is None:  # generated from one that is listed: the out= form of a functional operator
        source = _generated().get(name)
        return source is None or _has(source, backend)
    kernels = _kernels(entry)
    if backend in kernels or DECOMPOSED in kernels:
        return True
    if "structured_delegate" in entry:
        return _has(entry["structured_delegate"], backend)
    if not kernels:
        return True  # no kernel of its own at all: it is decomposed
    return bool(kernels & set(ANY_BACKEND)) and not _hands_over(name, backend)


def _hands_over(name: str, backend: str) -> bool:
    """Return whether a kernel for all backends only calls a form that this backend lacks.

    `put` copies and calls `put_`, `frexp` calls `frexp.Tensor_out`: the in-place or out= form is
    there, with a kernel for each of the other backends. Overloads can share the way.
    """
    return any(
        _lacks(form, backend)
        for overload in _same_name()[_bare(name)]
        if _shared_kernels(name) & _shared_kernels(overload)
        for form in _forms(overload)
    )


def _lacks(form: str, backend: str) -> bool:
    kernels = _kernels(_table()[form])
    return {"CPU", "CUDA"} <= kernels and not kernels & {backend, *ANY_BACKEND}


def _shared_kernels(name: str) -> set[str]:
    """Return the names of an operator's kernels for all backends."""
    dispatch = _table()[name].get("dispatch", {})
    return {kernel for keys, kernel in dispatch.items() if set(ANY_BACKEND) & set(keys.split(", "))}


def _forms(name: str) -> Iterator[str]:
    """Yield the in-place and out= forms of a functional operator with the same arguments."""
    functional = _table()[name]["func"]
    for form in _same_name().get(_bare(name), ()):
        if form != name and _arguments(_table()[form]["func"]) == _arguments(functional):
            yield form


def _bare(name: str) -> str:
    return name.partition(".")[0].rstrip("_")


@functools.cache
def _arguments(schema: str) -> tuple[str, ...]:
    """Return the types of the arguments, without out= and what an `out` knows by itself."""
    inside = schema.partition("(")[2].rpartition(") ->")[0]
    kept = []
    for argument in inside.split(", "):
        kind, _, rest = argument.partition(" ")
        given = rest.partition("=")[0]
        if argument == "*" or given in ("dtype", "layout", "device", "pin_memory"):
            continue
        if "!" in kind and given != "self":
            continue
        kept.append(kind.replace("(a!)", ""))
    return tuple(kept)


def _kernels(entry: dict[str, Any]) -> set[str]:
    kernels = {key.strip() for keys in entry.get("dispatch", {}) for key in keys.split(",")}
    return kernels | ({"CPU", "CUDA"} if "ufunc_inner_loop" in entry else set())


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # 0.1 s, where the other takes 2 s
    entries = yaml.load(TABLE.read_text(encoding="utf-8"), Loader=loader)
    return {entry["func"].partition("(")[0]: entry for entry in entries}


@functools.cache
def _generated() -> dict[str, str]:
    return {
        form.strip(): name
        for name, entry in _table().items()
        for form in entry.get("autogen", "").split(",")
    }


@functools.cache
def _same_name() -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name in _table():
        names.setdefault(_bare(name), []).append(name)
    return names


@functools.cache
def checks_devices(op: OpOverload) -> bool:
    """Return whether an operator refuses tensors of different devices.

    Those with NoCheck in the table take some of them on the CPU (an index, the lengths of
    sequences), except where a comment says that TensorIterator checks instead.
    """
    name = op.name().removeprefix("aten::")
    return torch.Tag.pointwise in op.tags or name not in _unchecked()


@functools.cache
def _unchecked() -> frozenset[str]:
    text = TABLE.read_text(encoding="utf-8")
    entries = re.findall(r"^- func: ([^(]+)(.*?)(?=^- func: |\Z)", text, re.MULTILINE | re.DOTALL)
    return frozenset(
        name
        for name, entry in entries
        if re.search(r"device_check: NoCheck(?!.*TensorIterator)", entry)
    )
