"""What a forward pass calls: each graph layer, the edges it visits, what it puts out, and what it executes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.nn.conv import MessagePassing


class _OperatorLog(TorchDispatchMode):
    """Counts the ATen operators that run while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def record_calls(model: nn.Module, batch: Tensor) -> pd.DataFrame:
    """Run ``model.loss(batch)`` once and return one row for each call of a graph layer (a PyG MessagePassing).

    Columns: module (as in named_modules), call (0, 1, ... of that module), layer (class name), edges (columns of the
    edge list), from_users and from_items (how many of the edges start at a user, at an item), users_max_abs and
    items_max_abs (largest absolute value in the output's user rows and item rows), operators (a mapping of ATen
    operator name to count). Messages run from an edge's first node to its second (PyG's default flow).
    """
    rows: list[dict[str, Any]] = []
    log = _OperatorLog()
    with _hooked(model, rows, log), log, torch.no_grad():
        model.loss(batch)
    return pd.DataFrame(rows, columns=_COLUMNS)


_COLUMNS = [
    "module",
    "call",
    "layer",
    "edges",
    "from_users",
    "from_items",
    "users_max_abs",
    "items_max_abs",
    "operators",
]


@contextmanager
def _hooked(model: nn.Module, rows: list[dict[str, Any]], log: _OperatorLog) -> Iterator[None]:
    counter: Counter[str] = Counter()
    started: list[Counter[str]] = []

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        started.append(log.counts.copy())

    def after(name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            operators = log.counts - started.pop()
            edges = _edge_list([*args, *kwargs.values()])
            rows.append(_row(name, counter[name], module, edges, output, dict(operators), model.n_users))
            counter[name] += 1

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, MessagePassing):
                for handle in (
                    module.register_forward_pre_hook(before, with_kwargs=True),
                    module.register_forward_hook(after(name), with_kwargs=True),
                ):
                    stack.callback(handle.remove)
        yield


def _edge_list(values: list[Any]) -> Tensor:
    def is_edge_list(value: Any) -> bool:
        return isinstance(value, Tensor) and value.dtype == torch.int64 and value.dim() == 2 and value.shape[0] == 2

    return next(value for value in values if is_edge_list(value))


def _row(name: str, call: int, module: nn.Module, edges: Tensor, output: Any, operators: dict, n_users: int) -> dict:
    out = next((o for o in (output if isinstance(output, tuple) else (output,)) if isinstance(o, Tensor)), None)
    size = [float(part.abs().max()) if part.numel() else 0.0 for part in (out[:n_users], out[n_users:])]
    from_users = int((edges[0] < n_users).sum())
    values = (name, call, type(module).__name__, edges.shape[1], from_users, edges.shape[1] - from_users, *size)
    return dict(zip(_COLUMNS, (*values, operators), strict=True))
