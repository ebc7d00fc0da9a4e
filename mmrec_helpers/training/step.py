"""One optimizer step, as training runs it and profilers measure it; and the same as a CUDA graph: one launch in place
of some hundreds."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from mmrec_helpers.config import InputError
from mmrec_helpers.training.evaluation import model_device
from mmrec_helpers.training.settings import TrainSettings

WARM_UP_STEPS = 3  # eager ones on another stream before a capture, so that lazily made constants and states are there


class TrainingError(RuntimeError):
    """Training cannot go on: a loss that is not finite, or a checkpoint that cannot be written."""


def make_optimizer(model: nn.Module, settings: TrainSettings | None = None) -> torch.optim.Adam:
    """Adam over the parameters that require a gradient, as MMRec sets it up (no weight decay, constant rate).

    torch's default implementation (one multi-tensor kernel at a time on CUDA) computes the same as the plain loop, and
    is what MMRec and so the reference backend train with; the other backends' is fused: one pass over memory, with
    other rounding. ``fused_optimizer`` chooses. A model with nothing to train raises InputError.
    """
    settings = settings or TrainSettings()
    parameters = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    if not parameters:
        raise InputError(f"{type(model).__name__} has no parameters to train: evaluate it without fit")
    fused = settings.fused_optimizer
    if fused is None:
        fused = getattr(model, "backend", "reference") != "reference"
    capturable = settings.cuda_graph and parameters[0].is_cuda
    return torch.optim.Adam(parameters, lr=settings.learning_rate, fused=fused or None, capturable=capturable)


def make_scaler(model: nn.Module) -> torch.amp.GradScaler | None:
    """The gradient scaler that a model in float16 mixed precision on CUDA needs; None for any other."""
    precision = getattr(getattr(model, "settings", model), "mixed_precision", None)
    return torch.amp.GradScaler("cuda") if precision == "float16" and model_device(model).type == "cuda" else None


def train_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    batch: Tensor,
    max_grad_norm: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
    check: bool | None = None,
) -> Tensor:
    """Forward, backward and update on a batch (3, B); returns the loss, a detached scalar on the model's device.

    The model is any torch module with ``loss(batch)``. Regions: "forward" (that), "backward", "optimizer" (clipping and
    update). Nothing waits for the device, except a ``scaler``, which asks whether the gradients overflowed.

    check  look at the loss before it spoils the parameters, and raise TrainingError naming the term that is not
           finite. Default: on the CPU only, because on CUDA looking means waiting.
    """
    optimizer.zero_grad()
    with record_function("forward"):
        loss = model.loss(batch)
    if (loss.device.type == "cpu" if check is None else check) and not loss.isfinite():
        raise TrainingError(describe_non_finite(model, batch, loss.item()))
    with record_function("backward"):
        (loss if scaler is None else scaler.scale(loss)).backward()
    with record_function("optimizer"):
        if max_grad_norm is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_((p for group in optimizer.param_groups for p in group["params"]), max_grad_norm)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    return loss.detach()


def describe_non_finite(model: Any, batch: Tensor, value: float) -> str:
    """Say which terms of the loss are not finite, and which parameters already were not."""
    parts = [f"the loss is {value}"]
    if hasattr(model, "loss_terms"):
        with torch.no_grad():
            terms = {name: float(term) for name, term in model.loss_terms(batch).items()}
        bad = [f"{name} = {term}" for name, term in terms.items() if not math.isfinite(term)]
        parts.append(f"terms not finite: {', '.join(bad)}" if bad else "no single term is, only their sum")
    spoiled = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    parts.append(f"parameters not finite before this step: {', '.join(spoiled) or 'none'}")
    return "; ".join(parts)


def cannot_be_graphed(model: nn.Module, device: torch.device | str) -> str | None:
    """Why a model's step cannot be captured, or None.

    A captured step may neither wait for the device nor copy from memory that moves: that leaves out the reference's
    layers, gradient checkpointing, features on the host, and mixed precision, whose scaler decides on the host.
    """
    if (kind := torch.device(device).type) != "cuda":
        return f"the model is on {kind}"
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

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, max_grad_norm: float | None = None) -> None:
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
            self._replay, self._captured = self._capture(self._batch), self._tensors()
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

    def _capture(self, batch: Tensor) -> Callable[[], Tensor]:
        """Record a step on whatever ``batch`` will hold without running it; returns what runs it and gives its loss."""
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)  # the gradients belong to the graph
        with torch.cuda.graph(graph):
            loss = self._eager(batch)

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
