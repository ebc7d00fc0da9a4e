"""Exact rewrites of a training step, found while the model's own code runs: by what is called with what, not by name.

``Rewrites`` watches every torch function that the code calls and every ``propagate`` of torch_geometric's layers, and
computes some of them another way. What is the same tensor, unchanged, as in an earlier step counts as constant:

product    a sparse matrix, or a dense one that is nearly empty, constant, times dense rows: one CSR and its transpose
message    message passing whose message is a constant weight of the edge times its source: such a product
rows       rows picked by an index tensor: the backward pass adds up by row in place of ``index_put_``
sums       sums over picked rows, weighted or multiplied by others: products; the picked rows are never written
unit rows  ``F.normalize`` of rows: fewer passes over them, forward and back
constant   functions of constants alone: their results are kept
untrained  attributes that require a gradient and are no parameters: no optimizer of ``model.parameters()`` uses it, so
           it is not computed, and they are constants
"""

import copy
import inspect
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch_geometric.nn import MessagePassing

from mmrec_helpers.ops import constant_product
from mmrec_helpers.ops.rows import l2_normalize
from mmrec_helpers.ops.sparse import ConstantMatrix
from mmrec_helpers.profiling.dataflow import calling_place
from mmrec_helpers.profiling.waste import leaves_of

Product = Callable[[Tensor], Tensor]
KINDS = ("product", "message", "rows", "sums", "unit rows", "constant", "untrained")
_PRODUCTS = {torch.mm, torch.matmul, torch.spmm, torch.sparse.mm, Tensor.mm, Tensor.matmul, Tensor.__matmul__}
_MULTIPLY = {torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}
_SUM, _MATMUL = {torch.sum, Tensor.sum}, {torch.matmul, Tensor.matmul, Tensor.__matmul__}
_PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.layout, type(...))
_RANDOM = ("rand", "drop", "bernoulli", "multinomial", "normal", "poisson", "gumbel", "seed", "empty", "rrelu")
_MADE_TO_BE_FILLED = ("zeros", "ones", "full", "tensor", "as_tensor", "from_numpy")
_FULLEST = 0.1  # share of a dense matrix's entries that are not 0, for a sparse product to be worth it
_SMALLEST_DENSE = 2**20  # entries
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
_MOST_LISTS = 4
_HOOKS = [
    f"_{what}_forward_{when}hooks" for what in ("propagate", "message", "aggregate") for when in ("pre_", "")
]  # of torch_geometric's layers
_LONGEST_TUPLE = 32  # a list of at most so many sequences is a tuple of indices to torch


class Rewrites(TorchFunctionMode):
    """Inside ``with rewrites.step():`` the model's code computes with the rewrites of ``kinds``; outside as ever.

    ``used`` maps each rewrite to the places in the model's code where it was used while ``noting``.
    """

    def __init__(self, model: nn.Module, kinds: tuple[str, ...] = KINDS) -> None:
        super().__init__()
        self.model, self.kinds = model, kinds
        self.used: dict[str, set[str]] = {}
        self.noting = False
        self._identities = _Identities()
        self._kept: dict[Hashable, tuple[Any, tuple]] = {}
        self._refused: set[Hashable] = set()
        self._lists: dict[int, tuple[list, Tensor]] = {}
        self.untrained: dict[int, tuple[Tensor, Tensor]] = {}  # the attribute's tensor, and it without a gradient
        self._layers = [module for module in model.modules() if isinstance(module, MessagePassing)]
        self._active = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step, or part of one. Within itself it does nothing more."""
        if self._active:
            yield
            return
        self._active = True
        self._forget()
        layers = self._layers if "message" in self.kinds else []
        for layer in layers:
            vars(layer)["propagate"] = _Propagate(self, layer)
        try:
            with self:
                yield
        finally:
            self._active = False
            for layer in layers:
                del vars(layer)["propagate"]

    def __deepcopy__(self, memo: dict) -> "Rewrites":
        return Rewrites(copy.deepcopy(self.model, memo), self.kinds)

    def __reduce__(self) -> tuple:
        return Rewrites, (self.model, self.kinds)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ == "__get__":
            return func(*args, **kwargs)
        if self.untrained:
            args, kwargs = tree_map_only(Tensor, self._without_gradient, (args, kwargs))
        if any(issubclass(one, _Picked) for one in types):
            return func(*args, **kwargs)
        if func in _PRODUCTS and "product" in self.kinds and len(args) == 2 and not kwargs:
            out = self._product(*args)
            if out is not None:
                return out
        elif func is Tensor.__getitem__ or func is F.normalize:
            out = (self._rows if func is Tensor.__getitem__ else self._unit_rows)(*args, **kwargs)
            if out is not None:
                return out
        return self._constant(func, args, kwargs) if "constant" in self.kinds else func(*args, **kwargs)

    # ------------------------------------------------------------------------------------------------- products

    def _product(self, matrix: Any, x: Any) -> Tensor | None:
        """matrix @ x for a constant matrix with few entries, else None."""
        if not (isinstance(matrix, Tensor) and isinstance(x, Tensor)) or x.layout != torch.strided or x.dim() != 2:
            return None
        if matrix.requires_grad or matrix.dim() != 2 or matrix.dtype != x.dtype or not _is_exact(x):
            return None
        if matrix.layout == torch.strided and matrix.numel() < _SMALLEST_DENSE:
            return None
        key = self._identities.constant(matrix)
        found = None if key is None else self._once(("product", key), lambda: _as_constant(matrix))
        if found is None:
            return None
        self.note("product")
        return found(x)

    def message_product(self, layer: MessagePassing, edges: Any, kwargs: dict[str, Any]) -> Tensor | None:
        """What ``layer.propagate(edges, **kwargs)`` returns, where that is a constant matrix times x; else None."""
        x = kwargs.get("x")
        if not isinstance(edges, Tensor) or not isinstance(x, Tensor) or x.dim() != 2 or not _is_exact(x):
            return None
        others = {name: value for name, value in kwargs.items() if name != "x"}
        state = {"rows": len(x), "dtype": x.dtype, "training": layer.training}
        key = self._key(layer, (edges,), others | state)
        if key is None:
            return None
        found = self._once(("message", key), lambda: _as_product(layer, edges, kwargs))
        if found is None:
            return None
        self.note("message")
        return layer.update(found(x))

    # ----------------------------------------------------------------------------------------------------- rows

    def _rows(self, table: Any, index: Any) -> Tensor | None:
        """table[index] for a table of rows that gets a gradient and an index of whole numbers, else None."""
        if not isinstance(table, Tensor) or not (table.requires_grad and torch.is_grad_enabled()) or table.dim() != 2:
            return None
        if isinstance(index, list) and len(index) > _LONGEST_TUPLE and "sums" in self.kinds:
            index = self._as_tensor(index, table.device)
        whole = isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32)
        if not whole or not _is_exact(table) or index.dim() == 0:
            return None
        if index.dim() > 1:
            return _Picked.of(table, index, self) if "sums" in self.kinds else None
        if "rows" not in self.kinds:
            return None
        self.note("rows")
        return pick(table, index)

    def _unit_rows(self, x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Tensor | None:
        """Rows of x scaled to length 1, where they get a gradient."""
        plain = p == 2 and eps == 1e-12 and out is None and x.dim() == 2 and dim in (1, -1)
        if "unit rows" not in self.kinds or not plain or not x.requires_grad or not _is_exact(x):
            return None
        self.note("unit rows")
        return l2_normalize(x)

    def _as_tensor(self, index: list, device: torch.device) -> Tensor:
        """A list of indices as a tensor, made once as long as the model has the same list."""
        if self._lists.get(id(index), (None, None))[0] is not index:
            self._lists = dict(list(self._lists.items())[1 - _MOST_LISTS :])
            self._lists[id(index)] = index, torch.tensor(index, device=device)
        return self._lists[id(index)][1]

    def weighted_rows(self, weight: Tensor, table: Tensor, index: Tensor) -> Tensor | None:
        """(U, 1, d): the sum over k of weight[u, 0, k] table[index[u, k]], for constant weight (U, 1, k) and index."""
        key = self._key("weighted rows", (weight, index), {"rows": len(table)})
        if (
            key is None
            or torch.is_autocast_enabled()
            or weight.shape != (len(index), 1, index.shape[1])
            or weight.dtype != table.dtype
        ):
            return None
        found = self._once(key, lambda: _as_rows_matrix(weight, index, len(table)))
        self.note("sums")
        return found(table).unsqueeze(1)

    # ------------------------------------------------------------------------------------------------ constants

    def _without_gradient(self, tensor: Tensor) -> Tensor:
        """The tensor, without its gradient if no optimizer will use that."""
        if id(tensor) not in self.untrained:
            return tensor
        self.note("untrained")
        return self.untrained[id(tensor)][1]

    def _constant(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """func(*args, **kwargs): what it returned before, if it is a function of constants alone."""
        name = func.__name__
        writes = (name.endswith("_") and not name.endswith("__")) or name.startswith(("__i", "__set"))
        if writes or name in _MADE_TO_BE_FILLED or any(word in name for word in _RANDOM) or "out" in kwargs:
            return func(*args, **kwargs)
        key = self._key(func, args, kwargs)
        if key is None or key in self._refused or torch.is_inference_mode_enabled():
            return func(*args, **kwargs)
        if key in self._kept:
            out, marks = self._kept[key]
            if marks == _marks(out):
                self.note("constant")
                return out
            del self._kept[key]  # somebody wrote to it: it is no constant to them
            self._refused.add(key)
            return func(*args, **kwargs)
        states = torch.get_rng_state()
        out = func(*args, **kwargs)
        tensors = _tensors(out)
        if not tensors or any(t.requires_grad for t in tensors) or not torch.equal(states, torch.get_rng_state()):
            self._refused.add(key)
            return out
        for tensor in tensors:
            self._identities.see(tensor, always=True)
        self._kept[key] = out, _marks(out)
        return out

    def _key(self, what: Any, args: tuple, kwargs: dict) -> Hashable | None:
        """Names a call whose tensors are all constant; None for another."""
        try:
            parts = [what, torch.is_autocast_enabled()]
            parts += [self._part(value) for value in (*args, *(x for pair in sorted(kwargs.items()) for x in pair))]
            return tuple(parts)
        except _NotConstant:
            return None

    def _part(self, value: Any) -> Hashable:
        if isinstance(value, Tensor):
            key = self._identities.constant(value)
            if key is None or (value.requires_grad and torch.is_grad_enabled()):
                raise _NotConstant
            return key
        if isinstance(value, (list, tuple)):
            return tuple(map(self._part, value))
        if isinstance(value, slice):
            return "slice", self._part(value.start), self._part(value.stop), self._part(value.step)
        if value is None or isinstance(value, _PLAIN):
            return type(value), value
        raise _NotConstant

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            with torch._C.DisableTorchFunction():
                self._kept[key] = make(), ()
        return self._kept[key][0]

    def _forget(self) -> None:
        """Begin another step: drop what was kept for tensors that are no more."""
        if "untrained" in self.kinds:
            found = untrained_attributes(self.model)
            if [id(tensor) for tensor in found] != list(self.untrained):
                self.untrained = {id(tensor): (tensor, tensor.detach()) for tensor in found}
        gone = self._identities.next_step(self.model)
        if gone:
            self._kept = {key: value for key, value in self._kept.items() if gone.isdisjoint(_flat(key))}

    def note(self, kind: str) -> None:
        """Remember where a rewrite is used."""
        if self.noting:  # of a constant, each use of what was computed before
            with torch._C.DisableTorchFunction():
                self.used.setdefault(kind, set()).add(str(calling_place()))


class Rewritten:
    """A method of the model that runs with the rewrites. What they keep is no state of the model's: with ``__slots__``
    alone, ``profiling.state`` does not look for it here.

    model.calculate_loss = Rewritten(rewrites, model.calculate_loss)
    """

    __slots__ = ("own", "rewrites")

    def __init__(self, rewrites: Rewrites, own: Callable) -> None:
        self.rewrites, self.own = rewrites, own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.rewrites.step():
            return self.own(*args, **kwargs)


class _NotConstant(Exception):
    pass


class _Propagate:
    """A layer's ``propagate`` while the rewrites are at work."""

    def __init__(self, rewrites: Rewrites, layer: MessagePassing) -> None:
        self.rewrites, self.layer = rewrites, layer

    def __call__(self, edge_index: Any, size: Any = None, **kwargs: Any) -> Tensor:
        out = self.rewrites.message_product(self.layer, edge_index, {**kwargs, "size": size})
        return type(self.layer).propagate(self.layer, edge_index, size=size, **kwargs) if out is None else out


class _Identities:
    """Which tensors are the same, unchanged, as in an earlier step.

    A tensor is named by its storage, place in it, shape and version, which every writing operation raises. A weak
    reference to the storage keeps its address from being used again. Parameters never count: ``.data`` changes them
    and leaves the version.
    """

    def __init__(self) -> None:
        self._storages: dict[int, StorageWeakRef] = {}
        self._seen: dict[Hashable, int] = {}  # step; of what is always constant, -1
        self._trained: set[int] = set()
        self._step = 0

    def next_step(self, model: nn.Module) -> set[int]:
        """Forget storages that are no more; returns them."""
        self._step += 1
        self._trained = {p.untyped_storage()._cdata for p in model.parameters() if p.layout == torch.strided}
        gone = {storage for storage, reference in self._storages.items() if reference.expired()}
        for storage in gone:
            del self._storages[storage]
        if gone:
            self._seen = {key: step for key, step in self._seen.items() if gone.isdisjoint(_flat(key))}
        return gone

    def constant(self, tensor: Tensor) -> Hashable | None:
        """The name of a tensor that was seen in an earlier step, else None."""
        key = self.see(tensor)
        return key if key is not None and self._seen[key] < self._step else None

    def see(self, tensor: Tensor, always: bool = False) -> Hashable | None:
        with torch._C.DisableTorchFunction():
            key = self._name(tensor)
        if key is not None:
            self._seen.setdefault(key, -1 if always else self._step)
            if always:
                self._seen[key] = -1
        return key

    def _name(self, tensor: Tensor) -> Hashable | None:
        parts: tuple[Tensor, ...]
        if tensor.layout == torch.sparse_coo:
            parts = (tensor._indices(), tensor._values())
        elif tensor.layout == torch.sparse_csr:
            parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
        elif tensor.layout != torch.strided:
            return None
        else:
            storage = tensor.untyped_storage()
            address = storage._cdata
            if address in self._trained or tensor.is_inference():
                return None
            if address not in self._storages:
                self._storages[address] = StorageWeakRef(storage)
            return address, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version
        names = tuple(map(self._name, parts))
        return None if None in names else (tensor.shape, names)


class _Picked(Tensor):
    """Rows of a table that are picked by an index (n, k) and not yet written out: (n, k, d).

    A product with others and a sum of it, or a weighted sum, are computed without them; any other function gets them
    written out. What stands in the tensor itself is nan.
    """

    table: Tensor
    rows: Tensor
    factor: Tensor | None
    rewrites: Rewrites

    @staticmethod
    def of(table: Tensor, index: Tensor, rewrites: Rewrites, factor: Tensor | None = None) -> "_Picked":
        shape = (*index.shape, table.shape[1])
        picked = Tensor._make_subclass(_Picked, table.detach().new_full((), float("nan")).expand(shape), True)
        picked.table, picked.rows, picked.factor, picked.rewrites = table, index, factor, rewrites
        return picked

    def written_out(self) -> Tensor:
        rows = pick(self.table, self.rows)
        return rows if self.factor is None else rows * self.factor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in ("__get__", "size", "dim", "__len__", "numel"):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        out = _without_writing(func, args, kwargs)
        if out is not None:
            return out
        args, kwargs = tree_map_only(_Picked, _Picked.written_out, (args, kwargs))
        return func(*args, **kwargs)


def _without_writing(func: Any, args: tuple, kwargs: dict) -> Tensor | None:
    """The function of picked rows, computed without them; None if it is none of those that can be."""
    first: Any = args[0]
    second: Any = args[1] if len(args) > 1 else None
    plain = isinstance(first, _Picked) and first.factor is None and type(second) is Tensor
    if func in _MULTIPLY and plain and not kwargs and second.dim() == 2 and second.shape == first.shape[1:]:
        return _Picked.of(first.table, first.rows, first.rewrites, second)
    if func in _SUM and first.factor is not None and kwargs.keys() <= {"dim"}:
        if len(args) + len(kwargs) != 2 or kwargs.get("dim", second) not in (-1, 2):
            return None
        index = first.rows
        if bool((index == index[:, :1]).all()):  # each row's k are one and the same row of the table
            first.rewrites.note("sums")
            return pick(first.table, index[:, 0]) @ first.factor.T
    plain = isinstance(second, _Picked) and second.factor is None and type(first) is Tensor
    if func in _MATMUL and plain and not first.requires_grad and first.dim() == second.dim() == 3:
        return second.rewrites.weighted_rows(first, second.table, second.rows)
    return None


def untrained_attributes(model: nn.Module) -> list[Tensor]:
    """Tensors that attributes of the model hold, that require a gradient, and that no parameter reaches."""
    parameters = {id(parameter) for parameter in model.parameters()}
    held = {id(value): value for module in model.modules() for value in vars(module).values()}
    wanted = [value for value in held.values() if isinstance(value, Tensor) and value.requires_grad]
    return [tensor for tensor in wanted if parameters.isdisjoint(map(id, leaves_of(tensor)))]


def pick(table: Tensor, index: Tensor) -> Tensor:
    """table[index], negative numbers counted from the end; the gradient of a row is the sum over its places."""
    return F.embedding(torch.where(index < 0, index + len(table), index), table)


def _as_constant(matrix: Tensor) -> Product | None:
    """A constant matrix as CSR both ways; None for a dense one that is not nearly empty."""
    if matrix.layout == torch.strided and matrix.count_nonzero() > _FULLEST * matrix.numel():
        return None
    coo = matrix if matrix.layout == torch.sparse_coo else matrix.to_sparse_coo()
    return constant_product(ConstantMatrix(coo._indices(), coo._values(), tuple(coo.shape)))


def _as_rows_matrix(weight: Tensor, index: Tensor, n_rows: int) -> Product:
    row = torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1])
    column = torch.where(index < 0, index + n_rows, index).long().flatten()
    return constant_product(ConstantMatrix(torch.stack((row, column)), weight.detach().flatten(), (len(index), n_rows)))


def _as_product(layer: MessagePassing, edges: Tensor, kwargs: dict[str, Any]) -> Product | None:
    """x -> A x, what the layer's messages add up to before its ``update``, if they do so for every x.

    The entries of A are the messages of a source of ones. Then two random x must give, with other random states,
    messages that are these weights times the source, and sums that are A x.
    """
    x = kwargs["x"].detach()
    source, target = edges if layer.flow == "source_to_target" else edges.flip(0)
    (aggregation,) = [layer.aggr] if isinstance(layer.aggr, str) else layer.aggr or [None]
    if edges.dtype != torch.int64 or aggregation not in ("add", "sum", "mean"):
        return None
    if len(inspect.signature(layer.update).parameters) != 1 or any(getattr(layer, hooks) for hooks in _HOOKS):
        return None
    ones, _ = _messages(layer, edges, kwargs, torch.ones_like(x[:, :1]))
    if ones is None or ones.requires_grad or ones.shape not in ((len(source), 1), (len(source), x.shape[1])):
        return None
    weight = ones[:, 0]
    if aggregation == "mean":
        weight = weight / torch.bincount(target, minlength=len(x)).clamp(min=1)[target]
    shape = (len(x), len(x))
    product = constant_product(ConstantMatrix(torch.stack((target, source)), weight.to(x.dtype), shape))
    for seed in range(2):
        probe = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed)).to(x.device)
        message, out = _messages(layer, edges, kwargs, probe)
        if message is None or not (_close(message, ones[:, :1] * probe[source]) and _close(out, product(probe))):
            return None
    return product


def _close(one: Tensor, other: Tensor) -> bool:
    tolerance = _TOLERANCE[one.dtype]
    return one.shape == other.shape and float((one - other).abs().max()) <= tolerance * float(other.abs().max())


def _messages(layer: MessagePassing, edges: Tensor, kwargs: dict, x: Tensor) -> tuple[Tensor | None, Tensor]:
    """The messages of a layer for this x, and what they add up to; random states are left as they were."""
    seen: list[Tensor] = []
    handles = [
        layer.register_message_forward_hook(lambda _, __, message: seen.append(message)),
        layer.register_aggregate_forward_hook(lambda _, __, out: seen.append(out)),
    ]
    try:
        with torch.random.fork_rng(devices=[] if x.device.type == "cpu" else [x.device]):
            type(layer).propagate(layer, edges, **{**kwargs, "x": x})
    except Exception:  # it takes no such x: what happens to its own is its own affair
        return None, x
    finally:
        for handle in handles:
            handle.remove()
    return (seen[0], seen[1]) if len(seen) == 2 else (None, x)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)) and all(isinstance(one, Tensor) for one in value):
        return list(value)
    return []


def _marks(value: Any) -> tuple:
    """What changes when somebody writes to tensors, or asks for their gradients."""
    with torch._C.DisableTorchFunction():
        return tuple((tensor._version, tensor.requires_grad) for tensor in _tensors(value))


def _is_exact(x: Tensor) -> bool:
    """Whether products with x are computed in its own type, float32 or float64."""
    return x.layout == torch.strided and x.dtype in _TOLERANCE and not torch.is_autocast_enabled()


def _flat(key: Any) -> Iterator[Any]:
    for part in key:
        if isinstance(part, tuple) and not isinstance(part, torch.Size):
            yield from _flat(part)
        elif isinstance(part, int):
            yield part
