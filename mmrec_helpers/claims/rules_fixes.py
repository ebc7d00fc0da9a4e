"""Rules for the claims about the proposed fixes: what they do to accuracy, and whether rearranged work is faster.

Accuracy is decided by paired runs on a data set of TikTok's size or more, with at least five seeds of both arms; what
less has been measured decides nothing. "As shipped" the routing loop changes nothing, which the routing record shows:
then iterations cannot cost or buy accuracy, and only live routing is a question for the study.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmrec_helpers.claims.full_studies import difference_text, full_pair, full_studies
from mmrec_helpers.claims.ledger import Missing, Records, Verdict, machine_of, n_train_of, published_facts, rule
from mmrec_helpers.experiments.accuracy.intervals import EQUIVALENCE_MARGIN, FULL_SEEDS

FULL_N_TRAIN = 50_000  # training interactions; TikTok has 59,541
ROUNDING = 1e-5  # a change of the output below this is rounding
MORE_SEEDS = f"a study with at least {FULL_SEEDS} paired seeds on a data set of TikTok's size or more"
# What can stand in place of three live iterations: arm of the study, arm of the fixes record.
ALTERNATIVES = {
    "mean pooling": ("mean", "mean pooling"),
    "one attention pass (live, one iteration)": ("live-1", "live, 1 iteration"),
    "the final attention alone (as shipped)": ("as-shipped", "as shipped, none"),
    "a learned weighting": ("learned", "learned weighting"),
}


@rule("fix.accuracy")
def fix_accuracy(records: Records) -> Verdict:
    return _fewer_iterations("fix.accuracy", records, "live-3", "live-1", "three iterations", "one")


@rule("fix.retention")
def fix_retention(records: Records) -> Verdict:
    return _fewer_iterations("fix.retention", records, "live-2", "live-1", "two iterations", "one")


@rule("overkill")
def overkill(records: Records) -> Verdict:
    shipped, record = _as_shipped(records), _study(records)
    changes = {fewer: _pair(record, fewer, "live-3") for fewer in ("live-1", "live-2")}
    missing = [fewer for fewer, pair in changes.items() if pair is None]
    if shipped is None or missing:
        return Verdict("overkill", "undecided", f"{_shipped_sentence(shipped)} Live routing: missing {MORE_SEEDS}.")
    kept = [fewer for fewer, pair in changes.items() if _not_worse(pair)]
    told = "; ".join(
        f"{fewer.removeprefix('live-')} less 3: {difference_text(pair)}" for fewer, pair in changes.items()
    )
    sentence = f"{_shipped_sentence(shipped)} Live, test recall@20 of iterations {told}."
    verdict = ("supported" if kept else "partly") if shipped < ROUNDING else ("partly" if kept else "refuted")
    numbers = {fewer: pair["recall@20"] for fewer, pair in changes.items()}
    return Verdict("overkill", verdict, sentence, numbers, machine_of(record))


@rule("paper.sizes")
def paper_sizes(records: Records) -> Verdict:
    here, published = _published_interactions()
    differ = all(here / size > 2 or size / here > 2 for size in published)
    sizes = (
        f"The paper's data sets have {min(published):,} to {max(published):,} interactions, "
        f"the diagnosed one {here:,}: {min(here / size for size in published):.1f} to "
        f"{max(here / size for size in published):.1f} times as many."
    )
    record = _study(records)
    pairs = [_pair(record, "live-3", fewer) for fewer in ("live-1", "live-2")]
    if any(pair is None for pair in pairs):
        return Verdict("paper.sizes", "undecided", f"{sizes} Whether three iterations pay: missing {MORE_SEEDS}.")
    better = all(pair["recall@20_low"] > 0 for pair in pairs)
    sentence = (
        f"{sizes} Three live iterations less one: {difference_text(pairs[0])}; less two: {difference_text(pairs[1])}."
    )
    verdict = "supported" if differ and better else "partly" if differ or better else "refuted"
    return Verdict("paper.sizes", verdict, sentence, {"less_one": pairs[0]["recall@20"]}, machine_of(record))


@rule("fix.alternative")
def fix_alternative(records: Records) -> Verdict:
    fixes, record = records.nearest("fixes"), _study(records)
    live = _arm(fixes, "live, 3 iterations")["step_ms_median"]
    told, replaces, open_ones = [], [], []
    for label, (in_study, in_fixes) in ALTERNATIVES.items():
        pair, ratio = _pair(record, in_study, "live-3"), _arm(fixes, in_fixes)["step_ms_median"] / live
        if pair is None:
            open_ones.append(label)
            continue
        told.append(f"{label}: {ratio:.2f} of the step, recall@20 {difference_text(pair)}")
        if ratio < 1 and _not_worse(pair):
            replaces.append(label)
        elif ratio < 1 and pair["recall@20_high"] >= -EQUIVALENCE_MARGIN:
            open_ones.append(label)
    if not told:
        return Verdict("fix.alternative", "undecided", f"Missing: {MORE_SEEDS}, with the alternatives as arms.")
    verdict = "supported" if replaces else "undecided" if open_ones else "refuted"
    sentence = f"Against three live iterations: {'; '.join(told)}."
    if verdict == "undecided":
        sentence += f" Open: {', '.join(open_ones)}; more seeds would decide."
    return Verdict("fix.alternative", verdict, sentence, {"replacing": len(replaces)}, machine_of(record))


@rule("fix.vectorise")
def fix_vectorise(records: Records) -> Verdict:
    record = records.nearest("fixes")
    arms = _with_fix(record, "vectorise")
    sentence = (
        f"Both modalities in one attention call: {_ratios(arms)} of the reference's step; largest difference "
        f"{_largest_difference(arms):.0e} (float64). Live iterations depend on each other and cannot be batched."
    )
    verdict = _faster(arms) if all(arm["exact"] for arm in arms) else "refuted"
    return Verdict("fix.vectorise", verdict, sentence, _median_ratios(arms), machine_of(record))


@rule("fix.cache_attention")
def fix_cache_attention(records: Records) -> Verdict:
    record = records.nearest("fixes")
    arms = _with_fix(record, "cache attention")
    live = _arm(record, "attention cached, live")
    sentence = (
        f"With the first iteration's weights kept the step takes {_ratios(arms)} of the reference's; as shipped that "
        f"is exact, because the loop is dead; live it changes the output by {live['output_difference']:.0%} of its "
        "largest value."
    )
    faster = _faster(arms)
    changes = not all(arm["exact"] for arm in arms)
    verdict = "partly" if faster == "supported" and changes else faster
    return Verdict("fix.cache_attention", verdict, sentence, _median_ratios(arms), machine_of(record))


@rule("fix.sparse")
def fix_sparse(records: Records) -> Verdict:
    found = [record for record in records.all("fixes") if n_train_of(record) >= FULL_N_TRAIN]
    if not found:
        return Verdict("fix.sparse", "undecided", f"Missing: a fixes record of {FULL_N_TRAIN:,} interactions or more.")
    record = max(found, key=n_train_of)
    arms = _with_fix(record, "sparse")
    sentence = (
        f"torch's sparse operations take {_ratios(arms)} of the reference's step on {n_train_of(record):,} "
        f"interactions; largest difference {_largest_difference(arms):.0e} (float64)."
    )
    verdict = _faster(arms) if all(arm["exact"] for arm in arms) else "refuted"
    return Verdict("fix.sparse", verdict, sentence, _median_ratios(arms), machine_of(record))


@rule("compile.noop")
def compile_noop(records: Records) -> Verdict:
    found = records.all("fixes")
    with_loss = (record for record in found if "compiled_loss" in record["content"]["compile"])
    record = next(with_loss, None) or records.nearest("fixes")
    graphs = {way: counted["graphs"] for way, counted in record["content"]["compile"].items()}
    if not graphs["forward_of_compiled_model"]:
        return Verdict("compile.noop", "undecided", "The control compiled nothing either: torch.compile fails here.")
    arms = {arm["arm"]: arm["ratio_to_against"] for arm in _with_fix(record, "compile")}
    as_called, compiled = arms["torch.compile(model)"], graphs["loss_of_compiled_model"]
    sentence = (
        f"Called as MMRec's trainer does, torch.compile compiles {compiled} graphs (a call of the model itself, as a "
        f"control: {graphs['forward_of_compiled_model']}), and the step takes {as_called['median']:.2f} of the "
        "uncompiled one."
    )
    if "compiled_loss" in graphs:
        sentence += (
            f" With the loss itself compiled there are {graphs['compiled_loss']} graphs, and the step takes "
            f"{arms['torch.compile(loss)']['median']:.2f} ({record['content']['compile_backend']})."
        )
    faster = compiled > 0 and as_called["q3"] < 1
    verdict = ("supported" if as_called["median"] <= 0.85 else "partly") if faster else "refuted"
    return Verdict("compile.noop", verdict, sentence, graphs, machine_of(record))


def _fewer_iterations(claim: str, records: Records, more: str, fewer: str, more_told: str, fewer_told: str) -> Verdict:
    """Whether more iterations are more accurate: as shipped by the routing record, live by the study."""
    shipped, record = _as_shipped(records), _study(records)
    pair = _pair(record, more, fewer)
    if shipped is None or (shipped >= ROUNDING and pair is None):
        return Verdict(claim, "undecided", f"{_shipped_sentence(shipped)} Live routing: missing {MORE_SEEDS}.")
    live_gains = pair is not None and pair["recall@20_low"] > 0
    if pair is None:
        live = f"With live routing the question is open: missing {MORE_SEEDS}."
    else:
        live = f"Live, {more_told} less {fewer_told}: test recall@20 {difference_text(pair)}."
    if shipped < ROUNDING:
        verdict = "partly" if live_gains else "refuted"
    else:
        verdict = "supported" if live_gains else "refuted"
    numbers = {"as_shipped_output_change": shipped} | ({} if pair is None else {"live": pair["recall@20"]})
    machine = machine_of(record) if pair is not None else machine_of(records.nearest("routing"))
    return Verdict(claim, verdict, f"{_shipped_sentence(shipped)} {live}", numbers, machine)


def _as_shipped(records: Records) -> float | None:
    """The largest change that iterations make to the output as shipped, if the live control shows one; else None."""
    found = records.all("routing")
    if not found:
        return None
    arms = found[0]["content"]["arms"]
    largest = {
        routing: max(arm["output_change"] for arm in arms if arm["routing"] == routing)
        for routing in ("as_shipped", "live")
    }
    return largest["as_shipped"] if largest["live"] >= ROUNDING else None


def _shipped_sentence(change: float | None) -> str:
    if change is None:
        return "As shipped: missing a routing record whose live control shows a change."
    if change < ROUNDING:
        return (
            f"As shipped, 0 to 3 iterations are the same model (largest change of the output {change:.0e}): they can "
            "neither cost nor buy accuracy."
        )
    return f"As shipped, the iterations change the output by up to {change:.2g}."


def _study(records: Records) -> Mapping[str, Any] | None:
    return next(iter(full_studies(records, FULL_N_TRAIN)), None)


def _pair(record: Mapping[str, Any] | None, first: str, second: str) -> Mapping[str, Any] | None:
    return None if record is None else full_pair(record, first, second)


def _not_worse(pair: Mapping[str, Any]) -> bool:
    return pair["recall@20_low"] >= -EQUIVALENCE_MARGIN


def _published_interactions() -> tuple[int, list[int]]:
    """Interactions of the diagnosed data set, and of those of GRCN's paper, from facts.csv."""
    facts = [fact for fact in published_facts() if fact["kind"] == "dataset"]
    here = next((f["value"] for f in facts if f["dataset"].startswith("Music4All")), None)
    paper = next((f["value"] for f in facts if f["dataset"].startswith("GRCN paper")), None)
    if here is None or paper is None:
        raise Missing("published sizes")
    return int(here.split(" x ")[-1]), [int(size) for size in paper.split(", ")]


def _arm(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    for arm in record["content"]["arms"]:
        if arm["arm"] == name:
            return arm
    raise Missing(f"fixes, with {name}")


def _with_fix(record: Mapping[str, Any], fix: str) -> list[Mapping[str, Any]]:
    found = [arm for arm in record["content"]["arms"] if arm["fix"] == fix]
    if not found:
        raise Missing(f"fixes, with {fix}")
    return found


def _faster(arms: Iterable[Mapping[str, Any]]) -> str:
    """supported: all arms take less time than what they are compared with, quartiles too; refuted: none does."""
    ratios = [arm["ratio_to_against"] for arm in arms]
    if all(ratio["q3"] < 1 for ratio in ratios):
        return "supported"
    return "refuted" if all(ratio["median"] >= 1 for ratio in ratios) else "partly"


def _ratios(arms: Iterable[Mapping[str, Any]]) -> str:
    return " and ".join(f"{arm['ratio_to_against']['median']:.2f} ({arm['arm'].rpartition(', ')[2]})" for arm in arms)


def _median_ratios(arms: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    return {arm["arm"]: arm["ratio_to_against"]["median"] for arm in arms}


def _largest_difference(arms: Iterable[Mapping[str, Any]]) -> float:
    return max(max(arm["output_difference"], arm["gradient_difference"]) for arm in arms)
