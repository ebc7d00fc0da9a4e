"""What ``accelerate`` brings to a model of a checkout: its step's time, and how near its training stays to float64."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mmrec_helpers.config import InputError, seed_everything
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.steps import MeasureOptions, quoted_malloc
from mmrec_helpers.mmrec import Checkout, accelerate
from mmrec_helpers.mmrec.checkout import OwnStep
from mmrec_helpers.mmrec.step_check import last_digit_changed
from mmrec_helpers.profiling.regions import profile_steps
from mmrec_helpers.profiling.timing import TRIMMING_DISABLED, measure

STEPS, SLOW_STEPS, SLOW_MS = 20, 5, 2000  # of training, whose losses are compared; fewer of a model with a slow step
OWN_TRAININGS = 4  # of MMRec's own, all but the first from parameters changed in their last digit
LEARNING_RATE = 1e-3
_PRODUCTS = {f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv")}


def measure_gain(
    checkout: Checkout,
    name: str,
    data: Interactions,
    options: MeasureOptions,
    how: dict[str, Any],
    whole: bool = True,
    training_steps: int = STEPS,
) -> dict[str, Any]:
    """A model's own step with its update against the accelerated one, in turn.

    how             more arguments of ``Checkout.build``
    whole           measure all; without it ``own_ms``, ``factor`` and ``kinds`` alone
    training_steps  of the trainings that are compared, at most SLOW_STEPS of a model with a slow step; 0: none

    own_ms, factor     as the process's malloc is, so as a user has it: own over accelerated time (median and quartiles)
    trimming_disabled  the same two with malloc trimming disabled, where that can be set, else None
    products_ms        what the dense matrix products of the accelerated step take, by torch's profiler: what remains
                       of a step however fast all else is made
    kinds              of rewrites
    drift              steps, and the largest difference of a step's loss from that of the same training in float64,
                       relative to it, of the accelerated float32 (accelerated) and of MMRec's own (own: a list, of
                       ``OWN_TRAININGS`` that begin one rounding apart); without them ``why`` it was not compared
    refused            where ``accelerate`` refuses, its reason, and nothing else
    """

    def built() -> nn.Module:
        return checkout.build(name, data, **how)[0]

    own, batches = checkout.build(name, data, **how)
    try:
        fast: Any = accelerate(built())
    except InputError as error:
        return {"refused": str(error)}
    batch = next(iter(batches))
    ways = {"own": _step(own, batch), "accelerated": _step(fast, batch)}
    done = fast.accelerated
    kinds = [] if done.backend == "rewrites" else [f"{done.backend} step"]
    gain: dict[str, Any] = {**_timed(ways, options), "kinds": kinds + [kind for kind, _ in done.rewrites]}
    if whole:
        with quoted_malloc(options.device) as malloc:
            gain["trimming_disabled"] = _timed(ways, options) if malloc == TRIMMING_DISABLED else None
        gain["products_ms"] = _products_ms(ways["accelerated"], options.device)
        steps = training_steps if gain["own_ms"] < SLOW_MS else min(training_steps, SLOW_STEPS)
        gain["drift"] = _drift(built, list(itertools.islice(itertools.cycle(batches), steps)), options.seed)
    return gain


def _timed(ways: dict[str, Callable[[], None]], options: MeasureOptions) -> dict[str, Any]:
    timings = measure(ways, **options.timing)
    return {"own_ms": timings.median_ms("own"), "factor": timings.ratio("own", "accelerated").to_dict()}


def _products_ms(step: Callable[[], None], device: torch.device | str) -> float:
    operators = profile_steps(lambda _: step(), device=device).operators
    time = "self_ms" if torch.device(device).type == "cpu" else "device_ms"
    return float(operators.loc[operators["operator"].isin(_PRODUCTS), time].sum())


def gains_table(contents: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per examined model of a checkout: its own step, how many times as fast it becomes (median, quartiles;
    with malloc trimming disabled; at most, if its dense products were all that is left), by which rewrites, how far its
    own trainings (least, most) and the accelerated one drift from float64; or why not."""
    rows = []
    for content in contents:
        gain = content.get("accelerate") or {}
        factor, drift = gain.get("factor", {}), gain.get("drift", {})
        kept, products = gain.get("trimming_disabled"), gain.get("products_ms")
        row = {"model": content["model"], "own_ms": gain.get("own_ms"), "factor": factor.get("median")}
        row |= {
            "factor_q1": factor.get("q1"),
            "factor_q3": factor.get("q3"),
            "untrimmed": kept["factor"]["median"] if kept else None,
            "products_ms": products,
            "at_most": gain["own_ms"] / products if products else None,
            "rewrites": ", ".join(gain.get("kinds", [])),
        }
        own = np.atleast_1d(drift.get("own", np.nan))  # older records have one training
        row |= {
            "drift_own_least": own.min(),
            "drift_own_most": own.max(),
            "drift_accelerated": drift.get("accelerated"),
        }
        rows.append(row | {"note": gain.get("refused") or drift.get("why", "")})
    return pd.DataFrame(rows)


def drift_summary(table: pd.DataFrame) -> str:
    """What to expect of a log of an accelerated run, from the drifts that could be compared."""
    compared = table.dropna(subset=["drift_own_most"])
    if compared.empty:
        return "No training could be compared with float64."
    own, fast = compared["drift_own_most"], compared["drift_accelerated"]
    worst = compared.loc[(fast / own).idxmax()]
    said = f"{int((fast <= own).sum())} of {len(compared)} accelerated trainings stay as near to float64 as MMRec's own"
    said += (
        f" do when they begin one rounding apart (one more of MMRec's own would be farther off than {OWN_TRAININGS} "
    )
    said += (
        f"others in one case of {OWN_TRAININGS + 1}, so in about {len(compared) / (OWN_TRAININGS + 1):.1f} of these). "
    )
    said += f"The one that falls back most is {worst['model']}: its losses are "
    said += f"off by {worst['drift_accelerated']:.1e} of themselves, MMRec's own by {worst['drift_own_least']:.1e} to "
    said += f"{worst['drift_own_most']:.1e}. "
    return said + "A log that differs in its last digits shows that rounding, in either of the two."


def _step(model: Any, batch: Tensor) -> Callable[[], None]:
    step, optimizer = OwnStep(model), torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def run() -> None:
        optimizer.zero_grad()
        step.loss(batch).backward()
        optimizer.step()

    return run


def _drift(built: Callable[[], nn.Module], batches: list[Tensor], seed: int) -> dict[str, Any]:
    if not batches:
        return {"steps": 0, "why": "not asked for"}
    first, other = (_losses(built(), batches[:1], number)[0] for number in (seed, seed + 1))
    if first != other:
        return {"steps": 0, "why": "its steps draw random numbers, which are others in float64"}
    wide = in_float64(built())  # built in float32: in float64 it would draw other numbers
    try:
        with _default_float64():
            exact = _losses(wide, batches, seed)
    except (RuntimeError, TypeError, ValueError) as error:
        return {"steps": 0, "why": f"its code does not run in float64: {str(error).splitlines()[0]}"}

    def largest(model: nn.Module) -> float:
        return max(abs(loss - right) / abs(right) for loss, right in zip(_losses(model, batches, seed), exact))

    own = [largest(built())]
    for number in range(1, OWN_TRAININGS):
        model = built()
        last_digit_changed(model, number)()
        own.append(largest(model))
    return {"steps": len(batches), "own": own, "accelerated": largest(accelerate(built()))}


def _losses(model: Any, batches: list[Tensor], seed: int) -> list[float]:
    """The loss of each step of a training from here."""
    seed_everything(seed)
    step, optimizer = OwnStep(model), torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = step.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach().sum()))
    return losses


def in_float64(model: nn.Module) -> nn.Module:
    """The model with all its numbers in float64, those in attributes, lists and dictionaries too; the same object."""
    model.double()
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                vars(module)[name] = _wide(value)
    return model


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    if type(value) in (list, tuple):
        return type(value)(map(_wide, value))
    return {key: _wide(one) for key, one in value.items()} if type(value) is dict else value


@contextmanager
def _default_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
