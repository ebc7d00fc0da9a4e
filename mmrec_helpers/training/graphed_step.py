"""The training step as a CUDA graph: one launch in place of some hundreds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from mmrec_helpers.training.step import train_step

WARM_UP_STEPS = 3  # eager ones on another stream before a capture, so that lazily made constants and states are there


def cannot_be_graphed(model: nn.Module, device: torch.device) -> str | None:
    """Why a model's step cannot be captured, or None.

    A captured step may neither wait for the device nor copy from memory that moves: that leaves out the reference's
    layers, gradient checkpointing, features on the host, and mixed precision, whose scaler decides on the host.
    """
    if device.type != "cuda":
        return f"the model is on {device.type}"
    if not getattr(getattr(model, "ops", None), "fused", False):
        return f"its backend is {getattr(model, 'backend', None)!r}, not 'fused'"
    settings = getattr(model, "settings", None)
    for name in ("checkpointing", "mixed_precision", "features_on_host"):
        if getattr(settings, name, None):
            return f"{name} is set"
    return None


class GraphedStep:
    """``train_step`` for batches of one shape, replayed from a CUDA graph; other shapes run as they are.

    The first steps run as they are too, on a stream of their own; they are steps like any other, so that the losses are
    those of training without a graph, up to the order of sums. The graph is captured anew when a parameter, a buffer or
    a state of the optimizer is another tensor than it was. The optimizer must be ``capturable``.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float | None = None) -> None:
        self.model, self.optimizer, self.max_grad_norm = model, optimizer, max_grad_norm
        self._batch: Tensor | None = None  # what the graph reads
        self._replay: Callable[[], Tensor] | None = None
        self._captured: tuple[int, ...] = ()
        self._warmed = 0

    def __call__(self, batch: Tensor) -> Tensor:
        """One step on a batch (3, B); the loss, a detached scalar."""
        if self._batch is None:
            self._batch = batch.clone()
        if batch.shape != self._batch.shape:
            return self._eager(batch)
        if self._replay is not None and self._captured != self._tensors():
            self._replay, self._warmed = None, 0
        if self._replay is None:
            if self._warmed < WARM_UP_STEPS:
                self._warmed += 1
                return self._warm_up(batch)
            self._replay, self._captured = self._capture(), self._tensors()
        self._batch.copy_(batch)
        with record_function("graphed_step"):
            return self._replay().clone()

    def _eager(self, batch: Tensor) -> Tensor:
        return train_step(self.model, self.optimizer, batch, self.max_grad_norm, check=False)

    def _warm_up(self, batch: Tensor) -> Tensor:
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            loss = self._eager(batch)
        here.wait_stream(aside)
        return loss

    def _capture(self) -> Callable[[], Tensor]:
        """Record a step on ``self._batch`` without running it; returns what runs it and gives its loss."""
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)  # the gradients belong to the graph
        with torch.cuda.graph(graph):
            loss = self._eager(self._batch)

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay

    def _tensors(self) -> tuple[int, ...]:
        """Where everything that a step reads and writes in place lies."""
        held: list[Any] = [*self.model.parameters(), *self.model.buffers()]
        for state in self.optimizer.state.values():
            held += [value for value in state.values() if isinstance(value, Tensor)]
        return tuple(tensor.data_ptr() for tensor in held)
