"""Rules for the claims about time: epochs, the routing loop's share, what fewer iterations would save."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from mmrec_helpers.claims.ledger import (
    NOISE,
    SLOWER,
    Measured,
    Missing,
    Records,
    direction,
    find,
    noise_note,
    quartiles,
    rule,
    verdict_of,
)
from mmrec_helpers.claims.published_runs import GRCN_DATASET, logged_epochs, reported_epoch, span

CLAIMED_ONE_ITERATION_S = 525.0
AROUND = 0.2  # a claimed time holds when the measured one lies within this share of it


@rule("time.grcn", choosing=True)
def time_grcn(records: Records):
    claimed = reported_epoch("GRCN")
    known = f"No public log has an epoch with three iterations; with one it took {span(_one_iteration())} s."
    try:
        here = records.as_reported().together("steps", "epoch-diagnosed")
        epoch_s = here.value("grcn.epoch")
    except Missing as missing:
        raise Missing(f"at the diagnosed size, on CUDA, {missing}", known) from None
    sentence = f"Measured at the diagnosed size and settings: {epoch_s:.0f} s per epoch, against {claimed:.0f} s."
    return verdict_of(_near(epoch_s, claimed)), sentence, here


@rule("time.dragon")
def time_dragon(here: Measured):
    claimed = reported_epoch("DRAGON")
    both, single = logged_epochs("DRAGON", "both modalities", GRCN_DATASET), logged_epochs("DRAGON", "only")
    near = _near(statistics.median(both), claimed)
    return verdict_of(near), (
        f"The public logs give {span(both)} s per epoch with both modalities, and {span(single)} s with one: "
        f"{claimed:.0f} s is a time of {'both' if near else 'one, set beside GRCN with both'}."
    )


@rule("time.ratio")
def time_ratio(here: Measured):
    pairs = {"dragon": "{grcn-to-dragon.step, dragon} DRAGON's"}
    if here.has("grcn-to-dragon.diagnosed"):
        pairs["dragon-diagnosed"] = "under the diagnosed settings {grcn-to-dragon.diagnosed, dragon-diagnosed}"
    ratios = {variant: here.base_over(variant) for variant in pairs}
    shown = [f"{here.fill(template)} ({quartiles(ratios[variant])})" for variant, template in pairs.items()]
    verdicts = {_range_verdict(ratio, 5.5, 8.5) for ratio in ratios.values()}
    sentence = f"In paired steps under identical settings GRCN's takes {', '.join(shown)}."
    return verdicts.pop() if len(verdicts) == 1 else "partly", sentence


@rule("routing.bottleneck")
def routing_bottleneck(here: Measured):
    sentence = here.fill(
        "Under the profiler {loop.profiled} of GRCN's step lies in the routing loop (forward, recomputation and "
        "backward). Measured without the profiler, leaving the loop out makes the step {loop.saving, grcn-0} shorter "
        "({grcn.step} to {grcn-0.step})."
    )
    saved = 0 if direction(here.variant("grcn-0")) == NOISE else here.value("loop.saving")
    shares = (here.value("loop.profiled"), saved)
    return "supported" if min(shares) > 50 else "refuted" if max(shares) < 100 / 3 else "partly", sentence


@rule("depth.multiplies")
def depth_multiplies(here: Measured):
    sentence = here.fill(
        "The step with three iterations takes {iterations.three-to-one, grcn-1} that with one: a fixed "
        "{iteration.fixed} and {iteration.cost} per iteration."
    )
    return verdict_of(here.base_over("grcn-1")["q1"] >= 2.5), sentence


@rule("fix.one_iteration")
def fix_one_iteration(here: Measured):
    sentence = here.fill(
        "The step with three iterations takes {iterations.three-to-one, grcn-1} that with one; the public log of one "
        f"iteration shows {span(_one_iteration())} s per epoch, against the {CLAIMED_ONE_ITERATION_S:.0f} s promised."
    )
    verdict = _range_verdict(here.base_over("grcn-1"), 2.5, 3.5)
    if verdict == "supported" and not _near(statistics.mean(_one_iteration()), CLAIMED_ONE_ITERATION_S):
        verdict = "partly"
    return verdict, sentence


@rule("fix.two_iterations")
def fix_two_iterations(here: Measured):
    sentence = here.fill("The step with three iterations takes {iterations.three-to-two, grcn-2} that with two.")
    return _range_verdict(here.base_over("grcn-2"), 1.35, 1.65), sentence


@rule("attention.cost")
def attention_cost(here: Measured):
    measured = here.contents["routing"]["attention"]
    share = here.value("loop.profiled") / 100 + stage_share(here.contents["epoch"], "GRCN", "final_attention")
    compared = {"ratio": measured["attention_to_convolution"]}, measured["control"]
    sentence = here.fill(
        f"Attention (loop and final) is {share:.0%} of GRCN's profiled step; one attention call takes "
        f"{{attention.factor}} a convolution over the same edges{noise_note(*compared)}."
    )
    verdict = (
        "supported" if share > 0.5 and direction(*compared) == SLOWER else "refuted" if share < 1 / 3 else "partly"
    )
    return verdict, sentence


def stage_share(epoch: Mapping, model: str, stage: str) -> float:
    """The share of a model's profiled step that lies in regions whose names begin with ``stage``."""
    regions = find(epoch["models"], model=model)["regions"]
    return sum(r["ms"] for r in regions if r["region"].startswith(stage)) / sum(r["ms"] for r in regions)


def _one_iteration() -> list[float]:
    return logged_epochs("GRCN", "n_layers=1")


def _range_verdict(ratio: Mapping[str, float], low: float, high: float) -> str:
    """supported: median and both quartiles inside; refuted: all outside on one side; else partly."""
    if all(low <= ratio[key] <= high for key in ("q1", "median", "q3")):
        return "supported"
    return "refuted" if ratio["q3"] < low or ratio["q1"] > high else "partly"


def _near(value: float, claimed: float) -> bool:
    return abs(value - claimed) <= AROUND * claimed
