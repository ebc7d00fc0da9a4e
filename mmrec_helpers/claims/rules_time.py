"""Rules for the claims about time: epochs, the routing loop's share, what fewer iterations would save."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from mmrec_helpers.claims.ledger import (
    Missing,
    Records,
    Verdict,
    machine_of,
    matches_reported_size,
    published_facts,
    rule,
)

CLAIMED_GRCN_S, CLAIMED_DRAGON_S, CLAIMED_ONE_ITERATION_S = 1575.34, 228.0, 525.0
AROUND = 0.2  # a claimed time holds when the measured one lies within this share of it


@rule("time.grcn")
def time_grcn(records: Records) -> Verdict:
    logged = _published_epochs("GRCN", "n_layers=1")
    found = _diagnosed_epoch(records)
    if found is None:
        sentence = (
            f"No public log has an epoch with three iterations; with one it took {_span(logged)} s. "
            "Missing: an epoch record at the diagnosed size and settings, on CUDA."
        )
        return Verdict("time.grcn", "undecided", sentence, {"logged_one_iteration_s": statistics.mean(logged)})
    epoch_s = _model(found, "GRCN")["epoch_s"]
    near = _near(epoch_s, CLAIMED_GRCN_S)
    sentence = f"Measured at the diagnosed size and settings: {epoch_s:.0f} s an epoch, against {CLAIMED_GRCN_S} s."
    return Verdict("time.grcn", "supported" if near else "refuted", sentence, {"epoch_s": epoch_s}, machine_of(found))


@rule("time.dragon")
def time_dragon(records: Records) -> Verdict:
    both = _published_epochs("DRAGON", "both modalities", without="fettle")
    single = _published_epochs("DRAGON", "only")
    near = _near(statistics.median(both), CLAIMED_DRAGON_S)
    sentence = (
        f"The public logs give {_span(both)} s an epoch with both modalities, and {_span(single)} s with one: "
        f"{CLAIMED_DRAGON_S:.0f} s is a time of {'both' if near else 'one, set beside GRCN with both'}."
    )
    numbers = {"both_modalities_s": statistics.median(both), "one_modality_s": statistics.median(single)}
    return Verdict("time.dragon", "supported" if near else "refuted", sentence, numbers, "public logs")


@rule("time.ratio")
def time_ratio(records: Records) -> Verdict:
    pairs = _nearest_pairs(records)
    told, verdicts, numbers = [], set(), {}
    for settings, record in pairs.items():
        ratio = record["content"]["ratio_grcn_to_dragon"]
        numbers[f"ratio_{settings}"] = ratio["median"]
        verdicts.add(_range_verdict(ratio, 5.5, 8.5))
        told.append(
            f"{ratio['median']:.2f} times DRAGON's under the {settings} settings (quartiles {ratio['q1']:.2f} to "
            f"{ratio['q3']:.2f}; {ratio['heap']})"
        )
    verdict = verdicts.pop() if len(verdicts) == 1 else "partly"
    sentence = f"In matched pairs, interleaved, GRCN's step takes {' and '.join(told)}."
    return Verdict("time.ratio", verdict, sentence, numbers, machine_of(next(iter(pairs.values()))))


@rule("routing.bottleneck")
def routing_bottleneck(records: Records) -> Verdict:
    record = records.nearest("routing")
    full, none = (_arm(record, "as_shipped", n) for n in (3, 0))
    share = full["loop_ms"] / full["step_profiled_ms"]
    saved = 1 - 1 / _ratio(record, "as_shipped", 3, 0)["median"]
    sentence = (
        f"With three iterations the loop takes {share:.0%} of the step (forward, recomputation and backward); removing "
        f"it saves {saved:.0%} ({full['step_ms_median']:.0f} to {none['step_ms_median']:.0f} ms)."
    )
    verdict = "supported" if min(share, saved) > 0.5 else "refuted" if max(share, saved) < 1 / 3 else "partly"
    return Verdict("routing.bottleneck", verdict, sentence, {"share": share, "saved": saved}, machine_of(record))


@rule("depth.multiplies")
def depth_multiplies(records: Records) -> Verdict:
    record = records.nearest("routing")
    ratio = _ratio(record, "as_shipped", 3, 1)
    fit = _first("fit as_shipped", (f for f in record["content"]["fits"] if f["routing"] == "as_shipped"))
    sentence = (
        f"Three iterations take {ratio['median']:.2f} times as long as one: a fixed {fit['fixed_ms']:.0f} ms a step "
        f"and {fit['per_iteration_ms']:.0f} ms an iteration."
    )
    verdict = "supported" if ratio["q1"] >= 2.5 else "refuted"
    return Verdict("depth.multiplies", verdict, sentence, {"ratio": ratio["median"]}, machine_of(record))


@rule("fix.one_iteration")
def fix_one_iteration(records: Records) -> Verdict:
    record = records.nearest("routing")
    ratio = _ratio(record, "as_shipped", 3, 1)
    logged = _published_epochs("GRCN", "n_layers=1")
    sentence = (
        f"Three iterations take {ratio['median']:.2f} times as long as one here; the public log of one iteration shows "
        f"{_span(logged)} s an epoch, against the {CLAIMED_ONE_ITERATION_S:.0f} s promised."
    )
    verdict = _range_verdict(ratio, 2.5, 3.5)
    if verdict == "supported" and not _near(statistics.mean(logged), CLAIMED_ONE_ITERATION_S):
        verdict = "partly"
    numbers = {"ratio": ratio["median"], "logged_s": statistics.mean(logged)}
    return Verdict("fix.one_iteration", verdict, sentence, numbers, machine_of(record))


@rule("fix.two_iterations")
def fix_two_iterations(records: Records) -> Verdict:
    record = records.nearest("routing")
    ratio = _ratio(record, "as_shipped", 3, 2)
    sentence = f"Three iterations take {ratio['median']:.2f} times as long as two."
    verdict = _range_verdict(ratio, 1.35, 1.65)
    return Verdict("fix.two_iterations", verdict, sentence, {"ratio": ratio["median"]}, machine_of(record))


@rule("attention.cost")
def attention_cost(records: Records) -> Verdict:
    pairs = _nearest_pairs(records)
    record = pairs.get("plain") or next(iter(pairs.values()))
    regions = _model(record, "GRCN")["regions"]
    attention = sum(r["ms"] for r in regions if r["region"].startswith(("routing", "final_attention")))
    share = attention / sum(r["ms"] for r in regions)
    dragon = _model(record, "DRAGON")["regions"]
    numbers = {"attention_share": share, "dragon_convolution_ms": _region_ms(dragon, "convolution")}
    against = records.nearest("attention")["content"]["attention_to_convolution"]
    sentence = (
        f"Attention (loop and final) is {share:.0%} of GRCN's step; one attention takes {against['median']:.1f} times "
        "as long as DRAGON's convolution over the same edges."
    )
    verdict = "supported" if share > 0.5 and against["q1"] > 1 else "refuted" if share < 1 / 3 else "partly"
    return Verdict("attention.cost", verdict, sentence, numbers | {"ratio": against["median"]}, machine_of(record))


def _nearest_pairs(records: Records) -> dict[str, Mapping[str, Any]]:
    """By name of settings, the newest epoch record on the device and data set nearest to the diagnosed ones."""
    nearest = records.nearest("epoch")
    found: dict[str, Mapping[str, Any]] = {}
    for record in records.all("epoch"):
        if _where(record) == _where(nearest):
            found.setdefault(record["content"]["settings_name"], record)
    return dict(sorted(found.items(), reverse=True))  # plain first


def _where(record: Mapping[str, Any]) -> tuple[str, int]:
    made = record["provenance"]
    return made["device"]["type"], int((made.get("data") or {}).get("n_train", 0))


def _diagnosed_epoch(records: Records) -> Mapping[str, Any] | None:
    return next(
        (
            record
            for record in records.all("epoch")
            if matches_reported_size(record)
            and record["provenance"]["device"]["type"] == "cuda"
            and record["content"]["settings_name"] == "diagnosed"
        ),
        None,
    )


def _published_epochs(model: str, setting: str, without: str = "\0") -> list[float]:
    """Published seconds an epoch of a model whose setting contains ``setting``."""
    times = [
        float(fact["value"])
        for fact in published_facts()
        if fact["kind"] == "epoch_time"
        and fact["model"] == model
        and setting in fact["setting"]
        and without not in fact["setting"]
        and fact["source"] != "the diagnosis"
    ]
    if not times:
        raise Missing(f"published epoch time of {model}, {setting}")
    return times


def _model(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return _first(f"epoch of {name}", (m for m in record["content"]["models"] if m["model"] == name))


def _arm(record: Mapping[str, Any], routing: str, iterations: int) -> Mapping[str, Any]:
    arms = record["content"]["arms"]
    wanted = (a for a in arms if (a["routing"], a["iterations"]) == (routing, iterations))
    return _first(f"routing with {iterations} iterations, {routing}", wanted)


def _ratio(record: Mapping[str, Any], routing: str, slow: int, fast: int) -> Mapping[str, float]:
    ratios = record["content"]["ratios"]
    wanted = (r for r in ratios if (r["routing"], r["numerator"], r["denominator"]) == (routing, slow, fast))
    return _first(f"routing ratio {slow} to {fast}, {routing}", wanted)


def _first(what: str, found: Iterator[Mapping[str, Any]]) -> Mapping[str, Any]:
    for one in found:
        return one
    raise Missing(what)


def _region_ms(regions: list[Mapping[str, Any]], prefix: str) -> float:
    return sum(r["ms"] for r in regions if r["region"].startswith(prefix))


def _range_verdict(ratio: Mapping[str, float], low: float, high: float) -> str:
    """supported: median and both quartiles inside; refuted: all outside on one side; else partly."""
    inside = [low <= ratio[key] <= high for key in ("q1", "median", "q3")]
    if all(inside):
        return "supported"
    return "refuted" if ratio["q3"] < low or ratio["q1"] > high else "partly"


def _near(value: float, claimed: float) -> bool:
    return abs(value - claimed) <= AROUND * claimed


def _span(values: list[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f}"
