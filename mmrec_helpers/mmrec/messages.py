"""Message passing whose message is a constant weight of the edge times its source: found by probing."""

import inspect
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from mmrec_helpers.mmrec.constants import NotConstant
from mmrec_helpers.ops import constant_product
from mmrec_helpers.ops.sparse import ConstantMatrix

Product = Callable[[Tensor], Tensor]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
_SCALES = (1.0, 1e4, 1e-4)  # of the sources that are tried
_HOOKS = [f"_{what}_forward_{when}hooks" for what in ("propagate", "message", "aggregate") for when in ("pre_", "")]
_LIBRARIES = ("torch", "torch_geometric", "torch_scatter", "math", "builtins")


def read_by_message(layer: MessagePassing) -> dict[str, Any]:
    """What the layer's message may read besides its arguments, by " name": attributes of the layer, globals. Raises
    NotConstant where that cannot be told: a helper of the layer's own, a function that is no library's, ``getattr``."""
    function = type(layer).message
    found: dict[str, Any] = {}
    for name in _names(function.__code__):
        if hasattr(layer, name):
            value = getattr(layer, name)
            if isinstance(value, MethodType) and value.__func__ is getattr(MessagePassing, name, None):
                continue  # nn.Module's own, such as x.float()
        elif name in function.__globals__:
            value = function.__globals__[name]
            if isinstance(value, ModuleType) or _of_a_library(value):
                continue
        elif name in ("getattr", "eval", "exec", "globals", "vars"):
            raise NotConstant
        else:
            continue  # an attribute of something else, or Python's own
        found[f" {name}"] = value
    return found


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _of_a_library(value: Any) -> bool:
    function = isinstance(value, (FunctionType, BuiltinFunctionType, type)) or callable(value)
    return function and str(getattr(value, "__module__", "")).partition(".")[0] in _LIBRARIES


def is_plain(layer: MessagePassing, edges: Any) -> bool:
    """Whether nothing but the message decides what the layer sums up: no hooks, no aggregation of its own."""
    if not isinstance(edges, Tensor) or edges.layout != torch.strided or edges.dim() != 2 or edges.shape[0] != 2:
        return False
    if edges.dtype != torch.int64 or edges.shape[1] == 0 or any(getattr(layer, hooks) for hooks in _HOOKS):
        return False
    return type(layer).aggregate is MessagePassing.aggregate


def as_product(layer: MessagePassing, edges: Tensor, kwargs: dict[str, Any]) -> Product | None:
    """x -> A x, what the layer's messages add up to before its ``update``, if they do so for every x.

    The entries of A are the messages of a source of ones. Then random x of three sizes must give, with other random
    states, messages that are these weights times the source, and sums that are A x.
    """
    x = kwargs["x"].detach()
    source, target = edges if layer.flow == "source_to_target" else edges.flip(0)
    (aggregation,) = [layer.aggr] if isinstance(layer.aggr, str) else layer.aggr or [None]
    if aggregation not in ("add", "sum", "mean") or len(inspect.signature(layer.update).parameters) != 1:
        return None
    with torch.enable_grad():  # a message with a parameter in it shows
        ones, _ = _messages(layer, edges, kwargs, torch.ones_like(x[:, :1]))
    if ones is None or ones.requires_grad or ones.shape not in ((len(source), 1), (len(source), x.shape[1])):
        return None
    weight = ones[:, 0]
    if aggregation == "mean":
        weight = weight / torch.bincount(target, minlength=len(x)).clamp(min=1)[target]
    shape = (len(x), len(x))
    product = constant_product(ConstantMatrix(torch.stack((target, source)), weight.to(x.dtype), shape))
    for seed, scale in enumerate(_SCALES):
        probe = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed)).to(x.device) * scale
        message, out = _messages(layer, edges, kwargs, probe)
        if message is None or not (_close(message, ones[:, :1] * probe[source]) and _close(out, product(probe))):
            return None
    return product


def _close(one: Tensor, other: Tensor) -> bool:
    tolerance = TOLERANCE[one.dtype]
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
