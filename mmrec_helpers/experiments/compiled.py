"""torch.compile on a model: as MMRec's trainer calls it, and as it should be called."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mmrec_helpers.config import choose

WAYS = ("model", "loss")


def compile_model(model: nn.Module, way: str, compile_backend: str = "inductor") -> nn.Module:
    """A model whose ``loss`` a training step may call.

    way  "model": ``torch.compile(model)``, as MMRec's trainer has it. Only a call of the model itself (``forward``)
         would run compiled; ``loss`` (MMRec: ``calculate_loss``) is handed through to the model as it was.
         "loss": ``torch.compile(model.loss)``; the model given is changed
    """
    if choose("way to compile", way, WAYS) == "model":
        return torch.compile(model, backend=compile_backend)
    model.loss = torch.compile(model.loss, backend=compile_backend)
    return model


def count_graphs(call: Callable[[], Any]) -> dict[str, int]:
    """Call something once and count what torch.compile does meanwhile, all 0 if it does nothing.

    Returns graphs (compiled), breaks (of the code into several graphs) and operators (that the graphs hold).
    """
    from torch._dynamo.utils import counters

    before = _counts(counters)
    with quiet_compiler():
        call()
    return {name: count - before[name] for name, count in _counts(counters).items()}


def _counts(counters: Any) -> dict[str, int]:
    stats = counters["stats"]
    broken = sum(counters["graph_break"].values())
    return {"graphs": stats["unique_graphs"], "breaks": broken, "operators": stats["calls_captured"]}


@contextmanager
def quiet_compiler() -> Iterator[None]:
    """Without the compiler's warnings, which tell of every graph break."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
