"""Exact rewrites of a training step, found while the model's own code runs: by what is called with what, not by name.

``Rewrites`` watches every torch function that the code calls and every ``propagate`` of torch_geometric's layers, and
computes some of them another way. What is the same tensor, unchanged, as in an earlier step of the epoch counts as
constant (``constants``):

product    a sparse matrix, or a dense one that is nearly empty, constant, times dense rows: one CSR and its transpose
message    message passing whose message is a constant weight of the edge times its source: such a product
rows       rows picked by an index tensor: the backward pass adds up by row in place of ``index_put_``
sums       sums over picked rows, weighted or multiplied by others: products; the picked rows are never written
unit rows  ``F.normalize`` of rows: fewer passes over them, forward and back
cosine     ``F.cosine_similarity`` of rows: the same
stack      the sum or mean over stacked tensors: they are added up, the stack is not written
scale      a product of matrices that is large beside them, times or over a number: a factor is scaled in its place
constant   functions of constants alone: their results are kept
untrained  attributes that require a gradient and are no parameters: no optimizer of ``model.parameters()`` uses it, so
           it is not computed, and they are constants
zero       a term of the loss times the number 0: its gradients are zeros, which nothing is traced back for
"""

import copy
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cached_property
from types import CodeType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch_geometric.nn import MessagePassing

from mmrec_helpers.mmrec.constants import ESCAPES, Constants, NotConstant, addresses
from mmrec_helpers.mmrec.deferred import Deferred
from mmrec_helpers.mmrec.fused_adam import fuse_adam_of, is_watched
from mmrec_helpers.mmrec.messages import TOLERANCE, Product, as_product, is_plain, read_by_message
from mmrec_helpers.mmrec.picked import MULTIPLY, Picked, pick
from mmrec_helpers.mmrec.scaled import LARGE, LargeProduct
from mmrec_helpers.mmrec.stacked import Stacked
from mmrec_helpers.ops import constant_product
from mmrec_helpers.ops.rows import cosine_similarity, l2_normalize
from mmrec_helpers.ops.sparse import ConstantMatrix
from mmrec_helpers.profiling.dataflow import calling_place
from mmrec_helpers.profiling.waste import leaves_of

KINDS = ("product", "message", "rows", "sums", "unit rows", "cosine", "stack", "scale", "constant", "untrained", "zero")
_PRODUCTS = {torch.mm, torch.matmul, torch.spmm, torch.sparse.mm, Tensor.mm, Tensor.matmul, Tensor.__matmul__}
_RANDOM = ("rand", "drop", "bernoulli", "multinomial", "normal", "poisson", "gumbel", "seed", "empty", "rrelu")
# What is made to be written to, or writes to what it is given.
_MADE_TO_BE_FILLED = {"zeros", "ones", "full", "tensor", "as_tensor", "from_numpy", "clone", "_values", "_indices"}
_MADE_TO_BE_FILLED |= {"batch_norm", "instance_norm"}  # which write their running statistics
_ON_THE_TENSOR_ITSELF = {"retain_grad", "register_hook", "register_post_accumulate_grad_hook", "__set__", "__delete__"}
_FULLEST = 0.1  # share of a dense matrix's entries that are not 0, for a sparse product to be worth it
_SMALLEST_DENSE = 2**20  # entries
_MOST_LISTS = 4
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
        self._constants = Constants()
        self._kept: dict[Hashable, tuple[Any, tuple]] = {}
        self._handed: set[Hashable] = set()  # kept results that somebody has in this step
        self._refused: set[Hashable] = set()
        self._lists: dict[int, tuple[list, list, Tensor]] = {}  # a list, what it held, and that as a tensor
        self._untrained: dict[int, tuple[Tensor, Tensor]] = {}  # the attribute's tensor, and it without a gradient
        self._deferred: list[weakref.ref[Deferred]] = []  # in this step
        self._active = False
        self._whole_functions: dict[Any, Callable[..., Tensor | None]] = {
            Tensor.__getitem__: self._rows,
            F.normalize: self._unit_rows,
            F.cosine_similarity: self._cosine,
            torch.stack: self._stacked,
        }

    @contextmanager
    def step(self, batch: Any = ()) -> Iterator[None]:
        """One step on a batch, or part of one. Within itself it does nothing more."""
        if self._active:
            yield
            return
        self._active = True
        self._begin(batch)
        watched = [m for m in self.model.modules() if isinstance(m, MessagePassing) and "message" in self.kinds]
        before = [(layer, vars(layer).get("propagate")) for layer in watched]
        for layer in watched:
            vars(layer)["propagate"] = _Propagate(self, layer)
        try:
            with self:
                yield
            for reference in self._deferred:  # what somebody still has shall be what it was in this step
                if (alive := reference()) is not None:
                    alive.written_out()
        finally:
            self._active = False
            self._deferred.clear()
            for layer, own in before:
                vars(layer).pop("propagate")
                if own is not None:
                    vars(layer)["propagate"] = own

    def forget(self) -> None:
        """Begin an epoch: nothing is constant any more until it has been seen again."""
        self._constants.forget()
        for kept in (self._kept, self._refused, self._lists):
            kept.clear()

    @cached_property
    def _reads_gradients(self) -> bool:
        return reads_gradients(self.model)

    def untrained_leaves(self) -> set[int]:
        """The ids of the tensors whose gradient is left out."""
        return {id(leaf) for tensor, _ in self._untrained.values() for leaf in leaves_of(tensor)}

    def __deepcopy__(self, memo: dict) -> "Rewrites":
        return Rewrites(copy.deepcopy(self.model, memo), self.kinds)

    def __reduce__(self) -> tuple:
        return Rewrites, (self.model, self.kinds)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        if func in ESCAPES and isinstance(args[0], Tensor):
            self._constants.never(args[0])
        if name == "__get__" or name in _ON_THE_TENSOR_ITSELF or name == "requires_grad_":
            return func(*args, **kwargs)
        if self._untrained:
            args, kwargs = tree_map_only(Tensor, self._without_gradient, (args, kwargs))
        if any(issubclass(one, Deferred) for one in types):
            return func(*args, **kwargs)
        if func in _PRODUCTS and len(args) == 2 and not kwargs:
            out = self._product(*args)
            if out is not None:
                return out
        elif func in MULTIPLY and "zero" in self.kinds and len(args) == 2 and not kwargs:
            out = self._zero_term(*args)
            if out is not None:
                return out
        elif func in self._whole_functions:
            out = self._whole_functions[func](*args, **kwargs)
            if out is not None:
                return out
        return self._constant(func, args, kwargs) if "constant" in self.kinds else func(*args, **kwargs)

    def _begin(self, batch: Any) -> None:
        """Begin another step: drop what was kept for tensors that are no more."""
        gone = self._constants.next_step(self.model)
        if gone:
            self._kept = {key: value for key, value in self._kept.items() if gone.isdisjoint(addresses(key))}
        self._handed.clear()
        tree_map_only(Tensor, self._constants.never, batch)
        if "untrained" in self.kinds:
            found = [] if self._reads_gradients else untrained_attributes(self.model)
            self._untrained = {id(tensor): (tensor, tensor.detach()) for tensor in found}
        if "accelerated" in vars(self.model) and not is_watched(self.model):
            fuse_adam_of(self.model, self.untrained_leaves)  # a copy of a model that was accelerated

    # ------------------------------------------------------------------------------------------------- products

    def _product(self, left: Any, right: Any) -> Tensor | None:
        """left @ right for a constant left matrix with few entries; deferred if it is larger than both; else None."""
        for factor in (left, right):
            if not isinstance(factor, Tensor) or factor.dim() != 2 or factor.dtype != left.dtype:
                return None
        if left.shape[1] != len(right) or not _is_exact(right):
            return None
        if not left.requires_grad:
            found = self._constant_product(left) if "product" in self.kinds else None
            if found is not None:
                self.note("product")
                return found(right)
        large = len(left) * right.shape[1] >= LARGE * max(left.numel(), right.numel())
        wanted = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
        if "scale" not in self.kinds or not large or not wanted or left.layout != torch.strided:
            return None
        return self._deferring(LargeProduct.from_factors(left, right, self.note))

    def _constant_product(self, matrix: Tensor) -> Callable[[Tensor], Tensor] | None:
        if matrix.layout == torch.strided and matrix.numel() < _SMALLEST_DENSE:
            return None
        key = self._constants.constant(matrix)
        return None if key is None else self._once(("product", key), lambda: _as_constant(matrix))

    def message_product(self, layer: MessagePassing, edges: Any, kwargs: dict[str, Any]) -> Tensor | None:
        """What ``layer.propagate(edges, **kwargs)`` returns, where that is a constant matrix times x; else None."""
        x = kwargs.get("x")
        if not is_plain(layer, edges) or not isinstance(x, Tensor) or x.dim() != 2 or not _is_exact(x):
            return None
        others = {name: value for name, value in kwargs.items() if name != "x"}
        state = {" rows": len(x), " dtype": x.dtype, " training": layer.training}
        try:
            key = self._constants.key(layer, (edges,), others | state | read_by_message(layer))
        except NotConstant:
            return None
        found = None if key is None else self._once(("message", key), lambda: as_product(layer, edges, kwargs))
        if found is None:
            return None
        self.note("message")
        return layer.update(found(x))

    def _zero_term(self, one: Any, other: Any) -> Tensor | None:
        """number * term for the number 0 and a term of one number that gets a gradient, else None."""
        term, number = (one, other) if isinstance(one, Tensor) else (other, one)
        if type(number) not in (int, float) or number != 0 or not isinstance(term, Tensor) or term.numel() != 1:
            return None
        if not (term.requires_grad and torch.is_grad_enabled()) or term.is_leaf or self._reads_gradients:
            return None
        if any(module._backward_hooks or module._backward_pre_hooks for module in self.model.modules()):
            return None
        self.note("zero")
        with torch._C.DisableTorchFunction():
            return _ZeroTerm.apply(term.detach() * number, *leaves_of(term))

    # ----------------------------------------------------------------------------------------------------- rows

    def _rows(self, table: Any, index: Any) -> Tensor | None:
        """table[index] or table[index, :] for a table of rows that gets a gradient and whole numbers, else None."""
        if isinstance(index, tuple) and len(index) == 2 and isinstance(index[1], slice) and index[1] == slice(None):
            index = index[0] if isinstance(index[0], Tensor) and index[0].dim() == 1 else index
        if not isinstance(table, Tensor) or not (table.requires_grad and torch.is_grad_enabled()) or table.dim() != 2:
            return None
        if isinstance(index, list) and len(index) > _LONGEST_TUPLE and "sums" in self.kinds:
            index = self._as_tensor(index, table.device)
        whole = isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32)
        if not whole or not _is_exact(table) or index.dim() == 0 or index.numel() == 0:
            return None
        if index.dim() > 1:
            return self._picked_rows(table, index) if "sums" in self.kinds and index.dim() == 2 else None
        if "rows" not in self.kinds:
            return None
        self.note("rows")
        return pick(table, index)

    def _picked_rows(self, table: Tensor, index: Tensor) -> Picked:
        return self._deferring(Picked.from_table(table, index, self._weighted_rows, self.note))

    def _unit_rows(self, x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Tensor | None:
        """Rows of x scaled to length 1, where they get a gradient."""
        plain = p == 2 and eps == 1e-12 and out is None and x.dim() == 2 and dim in (1, -1)
        if "unit rows" not in self.kinds or not plain or not x.requires_grad or not _is_exact(x):
            return None
        self.note("unit rows")
        return l2_normalize(x)

    def _cosine(self, x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Tensor | None:
        """The cosines of rows with rows, where one of them gets a gradient."""
        rows = all(isinstance(x, Tensor) and x.dim() == 2 and _is_exact(x) for x in (x1, x2))
        if "cosine" not in self.kinds or not rows or dim not in (1, -1) or eps != 1e-8:
            return None
        if x1.shape != x2.shape or x1.dtype != x2.dtype or not (x1.requires_grad or x2.requires_grad):
            return None
        self.note("cosine")
        return cosine_similarity(x1, x2)

    def _stacked(self, tensors: Any, dim: int = 0, *, out: Any = None) -> Stacked | None:
        """Two or more tensors that are stacked, and get a gradient."""
        parts = list(tensors) if isinstance(tensors, (list, tuple)) else []
        if "stack" not in self.kinds or len(parts) < 2 or out is not None or not torch.is_grad_enabled():
            return None
        if not all(isinstance(part, Tensor) and _is_exact(part) for part in parts):
            return None
        if len({(part.shape, part.dtype, part.device) for part in parts}) > 1 or not parts[0].dim():
            return None
        if not any(part.requires_grad for part in parts):
            return None
        return self._deferring(Stacked.from_parts(parts, dim % (parts[0].dim() + 1), self.note))

    def _as_tensor(self, index: list, device: torch.device) -> Tensor:
        """A list of indices as a tensor, made once as long as the model has the same list with the same numbers."""
        own, content, tensor = self._lists.get(id(index), (None, None, None))
        if own is not index or content != index or tensor is None:
            self._lists = dict(list(self._lists.items())[1 - _MOST_LISTS :])
            tensor = torch.tensor(index, device=device)
            self._lists[id(index)] = index, copy.deepcopy(index), tensor
        return tensor

    def _weighted_rows(self, weight: Tensor, table: Tensor, index: Tensor) -> Tensor | None:
        """(U, 1, d): the sum over k of weight[u, 0, k] table[index[u, k]], for constant weight (U, 1, k) and index."""
        key = self._constants.key("weighted rows", (weight, index), {"rows": len(table)})
        shape = (len(index), 1, index.shape[1])
        if key is None or not _is_exact(table) or weight.shape != shape or weight.dtype != table.dtype:
            return None
        found = self._once(key, lambda: _as_rows_matrix(weight, index, len(table)))
        self.note("sums")
        return found(table).unsqueeze(1)

    # ------------------------------------------------------------------------------------------------ constants

    def _without_gradient(self, tensor: Tensor) -> Tensor:
        """The tensor, without its gradient if no optimizer will use that."""
        if id(tensor) not in self._untrained:
            return tensor
        self.note("untrained")
        return self._untrained[id(tensor)][1]

    def _constant(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """func(*args, **kwargs): what it returned before, if it is a function of constants alone."""
        if _may_write(func.__name__) or "out" in kwargs:
            return func(*args, **kwargs)
        key = self._constants.key(func, args, kwargs)
        if key is None or key in self._refused or torch.is_inference_mode_enabled():
            return func(*args, **kwargs)
        if key in self._kept:
            return self._kept_result(key, func, args, kwargs)
        states = torch.get_rng_state()
        out = func(*args, **kwargs)
        tensors = _tensors(out)
        if not tensors or any(t.requires_grad for t in tensors) or not torch.equal(states, torch.get_rng_state()):
            self._refused.add(key)
            return out
        for tensor in tensors:
            self._constants.see(tensor, kept=True)
        self._kept[key] = out, _marks(out)
        self._handed.add(key)
        return out

    def _kept_result(self, key: Hashable, func: Any, args: tuple, kwargs: dict) -> Any:
        """A kept result, to one caller in a step: a second gets its own, so that neither sees what the other writes."""
        out, marks = self._kept[key]
        if marks != _marks(out) or any(self._constants.escaped(tensor) for tensor in _tensors(out)):
            del self._kept[key]  # somebody wrote to it, or may: it is no constant to them
            self._refused.add(key)
            return func(*args, **kwargs)
        if key in self._handed and not _are_views(out, args):
            return func(*args, **kwargs)
        self._handed.add(key)
        self.note("constant")
        return out

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            with torch._C.DisableTorchFunction():
                self._kept[key] = make(), ()
        return self._kept[key][0]

    def _deferring(self, deferred: Any) -> Any:
        """A deferred tensor, which is written at the end of the step if somebody still has it then."""
        self._deferred.append(weakref.ref(deferred))
        return deferred

    def note(self, kind: str) -> None:
        """Remember where a rewrite is used."""
        if self.noting:  # of a constant, each use of what was computed before
            with torch._C.DisableTorchFunction():
                self.used.setdefault(kind, set()).add(str(calling_place()))


class _ZeroTerm(torch.autograd.Function):
    """A value whose gradient to each of the leaves is zero."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *leaves: Tensor) -> Tensor:
        ctx.leaves = [(leaf.shape, leaf.dtype, leaf.device) for leaf in leaves]
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, *(torch.zeros((), dtype=t, device=d).expand(shape) for shape, t, d in ctx.leaves)


class Rewritten:
    """A method of the model that runs with the rewrites. What they keep is no state of the model's: with ``__slots__``
    alone, ``profiling.state`` does not look for it here.

    model.calculate_loss = Rewritten(rewrites, model.calculate_loss)
    """

    __slots__ = ("own", "rewrites")

    def __init__(self, rewrites: Rewrites, own: Callable) -> None:
        self.rewrites, self.own = rewrites, own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.rewrites.step((args, kwargs)):
            return self.own(*args, **kwargs)


class Forgetting(Rewritten):
    """A method that begins an epoch, and may change what was constant in the last one in any way."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.rewrites.forget()
        return self.own(*args, **kwargs)


class _Propagate:
    """A layer's ``propagate`` while the rewrites are at work."""

    def __init__(self, rewrites: Rewrites, layer: MessagePassing) -> None:
        self.rewrites, self.layer = rewrites, layer

    def __call__(self, edge_index: Any, size: Any = None, **kwargs: Any) -> Tensor:
        out = self.rewrites.message_product(self.layer, edge_index, {**kwargs, "size": size})
        return type(self.layer).propagate(self.layer, edge_index, size=size, **kwargs) if out is None else out


def untrained_attributes(model: nn.Module) -> list[Tensor]:
    """Tensors that attributes of the model hold, that require a gradient, and that no parameter reaches."""
    parameters = {id(parameter) for parameter in model.parameters()}
    held = {id(value): value for module in model.modules() for value in vars(module).values()}
    tensors = [value for value in held.values() if isinstance(value, Tensor) and not isinstance(value, Deferred)]
    return [t for t in tensors if t.requires_grad and parameters.isdisjoint(map(id, leaves_of(t)))]


def reads_gradients(model: nn.Module) -> bool:
    """Whether the model's own code names ``grad``, of a tensor or of ``torch.autograd``, or registers a hook."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    own = [cls for cls in classes if cls.__module__.partition(".")[0] not in ("torch", "torch_geometric", "builtins")]
    methods = [getattr(value, "__code__", None) for cls in own for value in vars(cls).values()]
    return any(_names_grad(code) for code in methods if isinstance(code, CodeType))


def _names_grad(code: CodeType) -> bool:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    named = any(name == "grad" or (name.startswith("register_") and "hook" in name) for name in code.co_names)
    return named or any(map(_names_grad, inner))


def _may_write(name: str) -> bool:
    """Whether a function of this name may write to what it is given, or makes what is written to, or is random."""
    if (name.endswith("_") and not name.endswith("__")) or name.startswith(("__i", "__set", "new_")):
        return True
    return name in _MADE_TO_BE_FILLED or name.endswith("_like") or any(word in name for word in _RANDOM)


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


def _are_views(value: Any, args: tuple) -> bool:
    """Whether results lie in the memory of what they were computed from: the model's own code gives them away twice."""
    with torch._C.DisableTorchFunction():
        given = {t.untyped_storage()._cdata for t in args if isinstance(t, Tensor) and t.layout == torch.strided}
        return all(t.layout == torch.strided and t.untyped_storage()._cdata in given for t in _tensors(value))


def _is_exact(x: Tensor) -> bool:
    """Whether products with x are computed in its own type, float32 or float64."""
    return x.layout == torch.strided and x.dtype in TOLERANCE and not torch.is_autocast_enabled(x.device.type)
