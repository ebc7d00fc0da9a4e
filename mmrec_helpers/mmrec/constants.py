"""Which tensors are the same, unchanged, as in an earlier step, and so may have their results kept."""

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _NormBase

from mmrec_helpers.profiling.nested_tensors import dense_parts

_PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.layout, type(...))
_ALWAYS = -1  # the step in which a kept result was seen
# What hands out a tensor's memory, so that it may change and no version tells.
ESCAPES = {getattr(Tensor, name) for name in ("numpy", "__array__", "data_ptr", "storage", "untyped_storage")}
ESCAPES |= {Tensor.__dlpack__, Tensor.data.__get__}  # type: ignore[attr-defined]


class NotConstant(Exception):
    """A call has an argument that is not known to be constant."""


class Constants:
    """The tensors that were seen in an earlier step, and are unchanged since.

    A tensor is named by its storage, place in it, shape and version, which writing operations raise. A weak reference
    to the storage keeps its address from being used again. Some writes raise no version, so these never count:
    parameters and whatever else requires a gradient (``.data`` and fused optimizers change them), running statistics,
    the batch, and memory that was handed to NumPy or through ``.data`` within a step. A write from outside a step by
    one of these ways is not seen before the next epoch, which forgets everything.
    """

    def __init__(self) -> None:
        self._storages: dict[int, StorageWeakRef] = {}
        self._seen: dict[Hashable, int] = {}  # step
        self._never: set[int] = set()
        self._trained: set[int] = set()
        self._step = 0

    def next_step(self, model: nn.Module) -> set[int]:
        """Forget storages that are no more; returns them."""
        self._step += 1
        norms = [module for module in model.modules() if isinstance(module, _NormBase)]
        changing = [*model.parameters(), *(buffer for module in norms for buffer in module.buffers(recurse=False))]
        self._trained = {t.untyped_storage()._cdata for t in changing if t.layout == torch.strided}
        gone = {storage for storage, reference in self._storages.items() if reference.expired()}
        for storage in gone:
            del self._storages[storage]
        self._never -= gone
        if gone:
            self._seen = {key: step for key, step in self._seen.items() if gone.isdisjoint(addresses(key))}
        return gone

    def forget(self) -> None:
        """Nothing is constant any more until it has been seen again."""
        self._seen.clear()

    def never(self, tensor: Tensor) -> None:
        """From now on this tensor's memory is not constant."""
        with torch._C.DisableTorchFunction():
            for part in dense_parts(tensor):
                self._storage(part)
                self._never.add(part.untyped_storage()._cdata)

    def escaped(self, tensor: Tensor) -> bool:
        with torch._C.DisableTorchFunction():
            return any(part.untyped_storage()._cdata in self._never for part in dense_parts(tensor))

    def key(self, what: Any, args: Any, kwargs: dict[str, Any]) -> Hashable | None:
        """Names a call whose tensors are all constant; None for another."""
        state = (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"), torch.get_default_dtype())
        try:
            return (what, state, self.part(tuple(args)), self.part(tuple(sorted(kwargs.items()))))
        except NotConstant:
            return None

    def part(self, value: Any) -> Hashable:
        """Names an argument; raises NotConstant."""
        if isinstance(value, Tensor):
            if value.requires_grad and value.is_leaf:
                self.never(value)
            key = None if value.requires_grad else self.constant(value)
            if key is None:
                raise NotConstant
            return key
        if isinstance(value, (list, tuple)):
            return type(value), tuple(map(self.part, value))
        if isinstance(value, slice):
            return "slice", self.part(value.start), self.part(value.stop), self.part(value.step)
        if value is None or isinstance(value, _PLAIN):
            return type(value), value
        raise NotConstant

    def constant(self, tensor: Tensor) -> Hashable | None:
        """The name of a tensor that was seen in an earlier step, else None."""
        key = self.see(tensor)
        return key if key is not None and self._seen[key] < self._step else None

    def see(self, tensor: Tensor, kept: bool = False) -> Hashable | None:
        """Remember a tensor; a ``kept`` result is constant from now on."""
        with torch._C.DisableTorchFunction():
            key = self._name(tensor)
        if key is not None:
            self._seen.setdefault(key, self._step)
            if kept:
                self._seen[key] = _ALWAYS
        return key

    def _name(self, tensor: Tensor) -> Hashable | None:
        names = tuple(map(self._part_name, dense_parts(tensor)))
        return None if not names or None in names else (tensor.layout, tensor.shape, tensor._version, names)

    def _part_name(self, tensor: Tensor) -> Hashable | None:
        address = tensor.untyped_storage()._cdata
        if address in self._trained or address in self._never or tensor.is_inference():
            return None
        self._storage(tensor)
        about = (tensor.dtype, tensor.is_conj(), tensor.is_neg(), tensor._version)
        return address, tensor.storage_offset(), tensor.shape, tensor.stride(), about

    def _storage(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._storages.setdefault(storage._cdata, StorageWeakRef(storage))


def addresses(key: Any) -> Iterator[int]:
    """The numbers in a name, the addresses of storages among them."""
    for part in key:
        if isinstance(part, tuple) and not isinstance(part, torch.Size):
            yield from addresses(part)
        elif isinstance(part, int):
            yield part
