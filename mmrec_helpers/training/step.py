"""One optimizer step, as training runs it and profilers measure it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from mmrec_helpers.config import InputError
from mmrec_helpers.training.evaluation import model_device
from mmrec_helpers.training.settings import TrainSettings


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
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Tensor,
    max_grad_norm: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
    check: bool | None = None,
) -> Tensor:
    """Forward, backward and update on a batch (3, B); returns the loss, a detached scalar on the model's device.

    Regions: "forward" (``model.loss``), "backward", "optimizer" (clipping and update). Nothing waits for the device,
    except a ``scaler``, which asks whether the gradients overflowed.

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


def describe_non_finite(model: nn.Module, batch: Tensor, value: float) -> str:
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
