"""Rules for the claims about the proposed fixes: what they do to accuracy, and whether rearranged work is faster.

Accuracy is decided by paired runs on a data set of TikTok's size or more, with at least five seeds of both variants;
what less has been measured decides nothing. "As shipped" the routing loop changes nothing, which the routing record
shows: then iterations cannot cost or buy accuracy, and only routing as in the paper is a question for the study.
"""

from collections.abc import Sequence

from mmrec_helpers.claims.full_studies import difference_text, full_pair, full_studies
from mmrec_helpers.claims.ledger import (
    FASTER,
    NOISE,
    Measured,
    Missing,
    Records,
    Row,
    direction,
    find,
    n_train_of,
    noise_note,
    rule,
    verdict_of,
)
from mmrec_helpers.claims.published_runs import published_interactions
from mmrec_helpers.config import counted
from mmrec_helpers.experiments.accuracy.intervals import EQUIVALENCE_MARGIN, FULL_SEEDS
from mmrec_helpers.experiments.fixes import FIXES

FULL_N_TRAIN = 50_000  # training interactions; TikTok has 59,541
ROUNDING = 1e-5  # a change of the output below this is rounding
SMALL_NOISE = 0.05  # a difference within noise of at most this share counts as none
MORE_SEEDS = f"a study with at least {FULL_SEEDS} paired seeds on a data set of TikTok's size or more"
PAPER = "With routing as in the paper"
# What can stand in place of three iterations as in the paper: variant of the study, variant of the steps.
ALTERNATIVES = {
    "mean pooling": ("grcn-mean", "grcn-mean"),
    "one attention pass (one iteration)": ("grcn-live-1", "grcn-live-1"),
    "the final attention alone (as shipped)": ("grcn", "grcn-0"),
    "learned-query attention": ("grcn-learned", "grcn-learned"),
}


@rule("fix.accuracy", choosing=True)
def fix_accuracy(records: Records):
    return _fewer_iterations(records, "grcn-live", "grcn-live-1", "three iterations minus one")


@rule("fix.retention", choosing=True)
def fix_retention(records: Records):
    return _fewer_iterations(records, "grcn-live-2", "grcn-live-1", "two iterations minus one")


@rule("overkill", choosing=True)
def overkill(records: Records):
    shipped = _shipped(records)
    known = _shipped_sentence(shipped)
    pairs = {n: _pair(records, variant, "grcn-live", known) for n, variant in ((1, "grcn-live-1"), (2, "grcn-live-2"))}
    kept = any(_not_worse(pair) for pair, _ in pairs.values())
    shown = "; ".join(f"{n} minus 3: {difference_text(pair)}" for n, (pair, _) in pairs.items())
    sentence = f"{known} {PAPER}, test recall@20 of iterations {shown}."
    return verdict_of(_dead(shipped), kept), sentence, _joined(pairs[1][1], shipped)


@rule("paper.sizes", choosing=True)
def paper_sizes(records: Records):
    here, paper = published_interactions()
    known = (
        f"The paper's data sets have {min(paper):,} to {max(paper):,} interactions, the diagnosed one {here:,}: "
        f"{here / max(paper):.1f} to {here / min(paper):.1f} times as many."
    )
    (one, study), (two, _) = (_pair(records, "grcn-live", fewer, known) for fewer in ("grcn-live-1", "grcn-live-2"))
    differ = all(here / size > 2 or size / here > 2 for size in paper)
    sentence = (
        f"{known} {PAPER}, three iterations minus one: {difference_text(one)}; minus two: {difference_text(two)}."
    )
    return verdict_of(differ, min(one["recall@20_low"], two["recall@20_low"]) > 0), sentence, study


@rule("fix.alternative", choosing=True)
def fix_alternative(records: Records):
    here, studies = records.together("steps"), []
    noise, base = here.value("noise") / 100, here.variant("grcn-live")["share"]
    shown, replaces, open_ones = [], [], []
    for label, (studied, timed) in ALTERNATIVES.items():
        ratio = here.variant(timed)["share"] / base
        try:
            pair, study = _pair(records, studied, "grcn-live")
        except Missing:
            open_ones.append(label)
            continue
        studies.append(study)
        within = " (within noise)" if abs(ratio - 1) <= noise else ""
        shown.append(f"{label}: {ratio:.2f} of the step{within}, recall@20 {difference_text(pair)}")
        if ratio < 1 - noise and _not_worse(pair):
            replaces.append(label)
        elif ratio < 1 - noise and pair["recall@20_high"] >= -EQUIVALENCE_MARGIN:
            open_ones.append(label)
    if not shown:
        raise Missing(f"{MORE_SEEDS}, with the alternatives among its variants")
    sentence = f"Against three iterations as in the paper: {'; '.join(shown)}."
    if open_ones and not replaces:
        sentence += f" Open: {', '.join(open_ones)}; more seeds would decide."
    verdict = "supported" if replaces else "undecided" if open_ones else "refuted"
    return verdict, sentence, _joined(studies[0], here)


@rule("fix.vectorise")
def fix_vectorise(here: Measured):
    return _rearranged(here, "vectorise", "Both modalities in one attention call")


@rule("fix.cache_attention")
def fix_cache_attention(here: Measured):
    rows = _rows_of(here, "cache attention")
    shipped, paper = (row["output_difference"] for row in rows)
    verdict, noise = _faster(rows, here)
    sentence = (
        f"The first iteration's attention kept, share of the base's step: {_ratios(rows)}. It changes the output by "
        f"{shipped:.1g} of its largest value as shipped, and by {paper:.1g} with routing as in the paper.{noise}"
    )
    changes = not all(row["exact"] for row in rows)
    return "partly" if verdict == "supported" and changes else verdict, sentence


@rule("fix.sparse", choosing=True)
def fix_sparse(records: Records):
    largest = max((n_train_of(record) for record in records.all("steps")), default=0)
    if largest < FULL_N_TRAIN:
        raise Missing(f"a record of kind 'steps' on {FULL_N_TRAIN:,} interactions or more")
    here = records.where(lambda record: n_train_of(record) == largest).together("steps")
    return *_rearranged(here, "sparse", f"Torch's sparse operations on {largest:,} interactions"), here


@rule("compile.noop", choosing=True)
def compile_noop(records: Records):
    with_loss = records.where(lambda r: r["kind"] == "fixes" and "compiled_loss" in r["content"]["compile"]["graphs"])
    here = (with_loss if with_loss.all("fixes") else records).together("fixes")
    content = here.content["compile"]
    graphs = {way: counts["graphs"] for way, counts in content["graphs"].items()}
    if not graphs["forward_of_compiled_model"]:
        return "undecided", "The control compiled nothing either: torch.compile fails here.", here
    row = find(content["rows"], way="model")
    sentence = (
        f"Called as MMRec's trainer does, torch.compile compiles {counted(graphs['loss_of_compiled_model'], 'graph')} "
        f"(a call of the model itself, as a control: {graphs['forward_of_compiled_model']}), and the step over "
        f"the uncompiled one is {_ratio(row, content['control'])}."
    )
    if "compiled_loss" in graphs:
        sentence += (
            f" With the loss itself compiled it compiles {counted(graphs['compiled_loss'], 'graph')}, and it is "
            f"{_ratio(find(content['rows'], way='loss'), content['control'])} "
            f"({here.content['compile_backend']})."
        )
    faster = graphs["loss_of_compiled_model"] > 0 and direction(row, content["control"]) == FASTER
    return verdict_of(faster, faster and row["ratio"]["median"] <= 0.85), sentence, here


def _fewer_iterations(records: Records, more: str, fewer: str, difference: str):
    """Whether more iterations are more accurate: as shipped by the routing record, as in the paper by the study."""
    shipped = _shipped(records)
    known = _shipped_sentence(shipped)
    try:
        pair, study = _pair(records, more, fewer, known)
    except Missing as missing:
        if not _dead(shipped):
            raise
        return "refuted", f"{known} {PAPER} the question is open, missing: {missing}.", shipped
    gains = pair["recall@20_low"] > 0
    sentence = f"{known} {PAPER}, {difference}: test recall@20 {difference_text(pair)}."
    return verdict_of(gains, gains and not _dead(shipped)), sentence, _joined(study, shipped)


def _pair(records: Records, first: str, second: str, known: str = "") -> tuple[Row, Measured]:
    """The difference of two variants in the full study that compares most, and that study."""
    for record in full_studies(records, FULL_N_TRAIN)[:1]:
        pair = full_pair(record, first, second)
        if pair is not None:
            return pair, Measured((record,))
    raise Missing(MORE_SEEDS, known)


def _joined(*measured: Measured) -> Measured:
    return Measured(tuple(record for one in measured for record in one.records))


def _shipped(records: Records) -> Measured:
    """The routing record, if its control, routing as in the paper, shows a change."""
    here = records.together("routing")
    if here.value("routing.paper-change") < ROUNDING:
        raise Missing("a record of kind 'routing' whose control, routing as in the paper, shows a change")
    return here


def _dead(shipped: Measured) -> bool:
    return shipped.value("routing.change") < ROUNDING


def _shipped_sentence(shipped: Measured) -> str:
    if _dead(shipped):
        return shipped.fill(
            "As shipped, 0 to 3 iterations are the same model (largest change of the output {routing.change}): they "
            "can neither cost nor buy accuracy."
        )
    return shipped.fill("As shipped, the iterations change the output by up to {routing.change}.")


def _not_worse(pair: Row) -> bool:
    return pair["recall@20_low"] >= -EQUIVALENCE_MARGIN


def _rows_of(here: Measured, fix: str) -> list[Row]:
    rows = [here.variant(name) for name in FIXES[fix]]
    if any(row["exact"] is None for row in rows):
        raise Missing(f"a record of kind 'steps' in which the outputs of {' and '.join(FIXES[fix])} are compared")
    return rows


def _rearranged(here: Measured, fix: str, what: str) -> tuple[str, str]:
    """Verdict and sentence on work that is only rearranged: it has to be faster, and exact."""
    rows = _rows_of(here, fix)
    difference = max(max(row["output_difference"], row["gradient_difference"]) for row in rows)
    verdict, noise = _faster(rows, here)
    sentence = f"{what}, share of the base's step: {_ratios(rows)}; largest difference {difference:.1g}.{noise}"
    return verdict if all(row["exact"] for row in rows) else "refuted", sentence


def _faster(rows: Sequence[Row], here: Measured) -> tuple[str, str]:
    """supported: all take less time than their base; partly: some do; refuted: none does. Undecided, with a sentence,
    where nothing is faster and the noise could hide more than a small difference."""
    found, noise = [direction(row) for row in rows], here.value("noise") / 100
    if FASTER in found:
        return "supported" if set(found) == {FASTER} else "partly", ""
    if NOISE in found and noise > SMALL_NOISE:
        return "undecided", f" Missing: a measurement with less noise than {noise:.0%}."
    return "refuted", ""


def _ratios(rows: Sequence[Row]) -> str:
    return " and ".join(f"{_ratio(row)} with {row['label']}" for row in rows)


def _ratio(row: Row, control: Row | None = None) -> str:
    return f"{row['ratio']['median']:.2f}{noise_note(row, control)}"
