"""What a routing iteration of GRCN costs and what it buys: 0 to 3 iterations, as shipped, live, and compared."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor, nn

from mmrec_helpers.data import Interactions
from mmrec_helpers.models import build
from mmrec_helpers.ops import ROUTINGS

ITERATIONS = (0, 1, 2, 3)


def iteration_effects(
    data: Interactions,
    batch: Tensor,
    seed: int = 0,
    device: torch.device | str = "cpu",
    iterations: Iterable[int] = ITERATIONS,
    dtype: torch.dtype = torch.float64,
) -> pd.DataFrame:
    """What the iterations change, from the same parameters: one row a routing and number of iterations.

    Columns: routing, iterations, output_change, loss_change, gradient_change: the largest absolute difference to no
    iteration at all, in the representation, in the loss, and over the gradients of all parameters.
    """
    rows = []
    for routing in ROUTINGS:
        base = None
        for n in iterations:
            model = build(
                "grcn", data, backend="reference", seed=seed, device=device, routing=routing, routing_iterations=n
            )
            result = _output_loss_gradients(model.to(dtype), batch)
            base = result if base is None else base
            changes = [_distance(now, then) for now, then in zip(result, base, strict=True)]
            rows.append((routing, n, *changes))
    return pd.DataFrame(rows, columns=["routing", "iterations", "output_change", "loss_change", "gradient_change"])


def _output_loss_gradients(model: nn.Module, batch: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    output = model.representation().detach()
    loss = model.loss(batch)
    loss.backward()
    return [output], [loss.detach()], [p.grad for p in model.parameters() if p.grad is not None]


def _distance(now: list[Tensor], then: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(now, then, strict=True))
