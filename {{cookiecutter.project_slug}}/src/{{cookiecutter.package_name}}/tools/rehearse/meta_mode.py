"""A dispatch mode in which a program believes that it runs on the target.

Every operator, those of the backward pass and of optimizers included, is computed with stand-ins:
their shapes by PyTorch's meta kernels, and their values where they are known.
"""

import functools
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .recorder import Recorder
from .standin import META, StandIn, home, in_kernel, invented, meta, value

CPU = torch.device("cpu")
SMALL = 2**16  # elements: tensors up to this size keep their values, which costs no time
LARGE = 2**25  # elements, beyond which nothing is computed just to learn a shape

ATEN = torch.ops.aten


class MetaMode(TorchDispatchMode):
    """Compute every operator with stand-ins, and show it to the recorder before and after.

    Args:
        target: the device that stand-ins live on.
        recorder: sees every operator, and every value that is asked for and not known.
        limit: elements of the largest tensor whose values are kept; None keeps all.
    """

    def __init__(
        self,
        target: torch.device,
        recorder: Recorder,
        *,
        limit: int | None = SMALL,
    ) -> None:
        super().__init__()
        self.target, self.recorder, self.limit = target, recorder, limit
        self.autocast = 0  # how many contexts of autocast are open
        self.inside = 0  # above 0 in a kernel that calls other operators
        self.looked: set[Any] = set()  # such kernels that have been looked at
        self.lost: set[int] = set()  # storages whose values were overwritten by unknown ones

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _has_kernel(func, "CompositeImplicitAutograd"):  # seen whole in inference mode only
            with self:
                if (result := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return result
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        place = self._place(func, given, kwargs)
        if self._mixes(given) and _has_kernel(func, "CompositeExplicitAutograd"):
            # Only its parts show whether it minds: some are meant to take lengths on the CPU.
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        if (parts := _made_of_others(func)) is not None and not self.inside:
            self._look_inside(func, parts, args, kwargs)
        if self.inside:
            self.recorder.part(func, given, kwargs.get("layout"))
        else:
            self.recorder.watch(func, given, place, kwargs.get("layout"))
        if func is ATEN._local_scalar_dense.default:
            return self._item(func, given[0])
        self.needed_values = False
        if place == CPU and all(type(t) is not StandIn and self._known(t) is t for t in given):
            result = self._plain(func, args, kwargs, bool(given))
        else:
            result = self._with_stand_ins(func, args, kwargs, given, place)
        if not self.inside:
            self.recorder.made(func, given, result, self.needed_values)
        return result

    def _look_inside(self, func: OpOverload, parts: Any, args: Any, kwargs: Any) -> None:
        """Let an operator that calls others do so, for the recorder to see which."""
        plain = [leaf for leaf in tree_leaves((args, kwargs)) if not isinstance(leaf, Tensor)]
        key = (func, str(plain))
        if key in self.looked:
            return
        self.looked.add(key)
        self.inside += 1
        try:  # what it gives is of no use: it takes the meta device for the target
            with self, torch.random.fork_rng(devices=[]):
                func._op_dk(parts, *args, **kwargs)
        except Exception:  # it is called again, for real
            return
        finally:
            self.inside -= 1

    def note_autocast(self, deeper: int) -> None:
        self.autocast += deeper

    def moved(self, tensor: Tensor) -> Tensor:
        """Return the tensor on the target, as `.to()` does."""
        if isinstance(tensor, StandIn) and tensor.home == self.target:
            return tensor
        known = value(tensor)
        if known is not None and self.limit is not None and known.numel() > self.limit:
            known = None
        if known is tensor and self.target == CPU:
            return tensor
        with torch.no_grad(), in_kernel():
            return StandIn(meta(tensor).detach(), self.target, known)

    def _place(self, func: OpOverload, given: list[Tensor], kwargs: dict[str, Any]) -> torch.device:
        """Return where the result lives."""
        if kwargs.get("device") is not None:
            return CPU if kwargs["device"].type == "cpu" else self.target
        if func is ATEN.copy_.default:
            return home(given[0])
        on_target = any(home(tensor) == self.target for tensor in given)
        return self.target if on_target else CPU

    def _mixes(self, given: list[Tensor]) -> bool:
        return len({home(tensor) for tensor in given if tensor.dim() > 0}) > 1

    def _plain(self, func: OpOverload, args: Any, kwargs: Any, takes_tensors: bool) -> Any:
        """Run an operator on the CPU's own tensors, for real unless it makes a large one."""
        if not takes_tensors and self.limit is not None and kwargs.get("device") is not None:
            with in_kernel():
                made = func(*args, **{**kwargs, "device": META})
            if made.numel() > self.limit:
                return StandIn(made, CPU)
        return func(*args, **kwargs)

    def _with_stand_ins(
        self, func: OpOverload, args: Any, kwargs: Any, given: list[Tensor], place: torch.device
    ) -> Any:
        shapes = values = None
        metas = {id(tensor): meta(tensor) for tensor in given}
        trouble: Exception | None = None
        try:
            if any(tensor.layout != torch.strided for tensor in given):
                raise NotImplementedError(f"how many elements {func} has depends on values")
            shapes = _call(func, args, kwargs, metas, META)
        except Exception as error:  # a wrong call, or no meta kernel: the CPU will tell
            trouble = error
        unknown = [tensor for tensor in given if self._known(tensor) is None]
        if trouble is not None and self.autocast and (floats := _floats_of_several_kinds(given)):
            # Autocast would have brought them to one dtype.
            metas |= {id(tensor): meta(tensor).to(torch.float32) for tensor in floats}
            try:
                shapes, trouble = _call(func, args, kwargs, metas, META), None
                unknown = given
            except Exception as error:
                trouble = error
        if trouble is not None:
            shapes, values, metas = self._by_values(func, args, kwargs, given, unknown, trouble)
        elif not unknown and self._cheap([*given, *tree_leaves(shapes)]):
            real = {id(tensor): value(tensor) for tensor in given}
            try:
                values = _call(func, args, kwargs, real, CPU)
            except Exception as error:
                if not _is_missing(error):
                    raise
        return self._joined(shapes, values, {id(metas[id(t)]): t for t in given}, place)

    def _by_values(
        self,
        func: OpOverload,
        args: Any,
        kwargs: Any,
        given: list[Tensor],
        unknown: list[Tensor],
        trouble: Exception,
    ) -> tuple[Any, Any, dict[int, Any]]:
        """Run an operator whose shape depends on values; unknown ones are made up."""
        too_much = sum(tensor.numel() for tensor in given) > LARGE
        if unknown and (too_much or any(t.layout != torch.strided for t in unknown)):
            raise trouble
        if unknown and torch.Tag.dynamic_output_shape in func.tags:
            self._guess(func)
        self.needed_values = True
        made_up = {id(tensor) for tensor in unknown}
        real = {id(t): invented(t) if id(t) in made_up else value(t) for t in given}
        try:
            values = _call(func, args, kwargs, real, CPU)
        except Exception as error:
            raise trouble if _is_missing(error) else error from None
        same = {id(tensor) for tensor in real.values()}
        shapes = tree_map(
            lambda leaf: meta(leaf) if isinstance(leaf, Tensor) and id(leaf) not in same else leaf,
            values,
        )
        return shapes, None if unknown else values, real

    def _joined(
        self, shapes: Any, values: Any, back: dict[int, Tensor], place: torch.device
    ) -> Any:
        """Return stand-ins of these shapes and values; what was changed in place stays itself."""
        known = iter(tree_leaves(values)) if values is not None else None

        def join(leaf: Any) -> Any:
            own = next(known) if known is not None else None
            if not isinstance(leaf, Tensor):
                return leaf if known is None else own
            if id(leaf) in back:
                if known is None:
                    self._lose(back[id(leaf)])
                return back[id(leaf)]
            if own is not None and own.shape != leaf.shape:  # a buffer of the CPU's kernel
                leaf = meta(own)
            if own is not None and not self._cheap([own]):
                own = None
            if own is not None and place == CPU:
                return own
            return StandIn(leaf, place, None if own is None else _laid_out_like(leaf, own))

        with in_kernel():
            return tree_map(join, shapes)

    def _cheap(self, leaves: list[Any]) -> bool:
        sizes = [leaf.numel() for leaf in leaves if isinstance(leaf, Tensor)]
        return self.limit is None or max(sizes, default=0) <= self.limit

    def _known(self, tensor: Tensor) -> Tensor | None:
        known = value(tensor)
        if known is None or not self.lost or known.layout != torch.strided:
            return known
        return None if known.untyped_storage()._cdata in self.lost else known

    def _lose(self, tensor: Tensor) -> None:
        known = value(tensor)
        if known is not None and known.layout == torch.strided:
            storage = known.untyped_storage()
            self.lost.add(storage._cdata)
            weakref.finalize(storage, self.lost.discard, storage._cdata).atexit = False

    def _guess(self, func: OpOverload) -> None:
        if not self.inside:
            self.recorder.guessed(func)

    def _item(self, func: OpOverload, tensor: Tensor) -> Any:
        known = self._known(tensor)
        if known is not None:
            return known.item()
        self._guess(func)
        if tensor.dtype == torch.bool:
            return False
        return 1.0 if tensor.dtype.is_floating_point else 1


def _call(
    func: OpOverload, args: Any, kwargs: Any, tensors: dict[int, Any], device: torch.device
) -> Any:
    """Call an operator with other tensors in place of those given, on another device."""

    def instead(leaf: Any) -> Any:
        return tensors[id(leaf)] if isinstance(leaf, Tensor) else leaf

    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": device}
    if "pin_memory" in kwargs:
        kwargs = {**kwargs, "pin_memory": None}
    with in_kernel(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a meta kernel's are not for the user
        return func(*tree_map(instead, args), **tree_map(instead, kwargs))


def _laid_out_like(leaf: Tensor, own: Tensor) -> Tensor:
    """Return values in the layout of their stand-in: on the CPU some convolutions use another."""
    if own.layout != torch.strided or own.stride() == leaf.stride():
        return own
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=own.dtype).copy_(own)


def _floats_of_several_kinds(given: list[Tensor]) -> list[Tensor]:
    floats = [tensor for tensor in given if tensor.dtype.is_floating_point]
    return floats if len({tensor.dtype for tensor in floats}) > 1 else []


def _is_missing(error: Exception) -> bool:
    """Return whether it failed only because the CPU has no kernel for this, or for this dtype."""
    return isinstance(error, NotImplementedError) or "not implemented" in str(error)


@functools.cache
def _made_of_others(func: OpOverload) -> Any:
    """Return the key of a functional operator's kernel for all backends, if it is worth a look.

    Every backend has the core operators, and a view calls nothing.
    """
    if torch.Tag.core in func.tags or func._schema.is_mutable or func.is_view:
        return None
    keys = ("CompositeExplicitAutogradNonFunctional", "CompositeExplicitAutograd")
    return next(
        (getattr(torch._C.DispatchKey, key) for key in keys if _has_kernel(func, key)), None
    )


@functools.cache
def _has_kernel(func: OpOverload, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
