"""What to do, situation by situation, each with the gain that the records at hand show."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mmrec_helpers.claims.full_studies import full_pair, full_studies, full_variants
from mmrec_helpers.claims.ledger import Measured, Missing, Record, Records, Row, find, from_nearest, on_cuda, quartiles
from mmrec_helpers.config import counted
from mmrec_helpers.experiments.accuracy.intervals import BETTER, EQUIVALENT, WORSE
from mmrec_helpers.records import machine_of

FIRST = 3  # how many of them answer what most readers come with


@dataclass(frozen=True)
class Recommendation:
    """What to do in one situation.

    situation  who it is for
    action     what to do
    copy       the lines to copy, of a settings file or of Python; "" where there are none
    gain       what the records say of it, or what is missing
    complete   whether it rests on measurements in full
    machine    of its first record
    """

    situation: str
    action: str
    copy: str
    gain: str
    complete: bool
    machine: str = ""


Gain = Callable[[Records], tuple[str, Measured]]  # a sentence, and the records that it was computed from


def recommend(records: Iterable[Record], own: Iterable[Record] = ()) -> list[Recommendation]:
    """The recommendations, the first one first; each gain from the records of the run itself where they give it, else
    from the record nearest to the diagnosed workload.

    own  the records of the run whose page this is
    """
    shelves = (Records(own, mark=True), Records(records))
    return [_made(shelves, *situation) for situation in _SITUATIONS]


def recommendation_text(one: Recommendation) -> str:
    """Action, gain and lines to copy as Markdown."""
    lines = "".join(f"\n{line}" for line in one.copy.splitlines())
    return f"**{one.action}** {one.gain}" + (f"\n\n```{lines}\n```" if lines else "")


def first_answer(advice: Sequence[Recommendation], records: Iterable[Record]) -> str:
    """What to do, for the first screen, as Markdown: the first recommendations, how much slower GRCN is, and where they
    hold."""
    texts = [recommendation_text(one).replace("\n", "\n   ") for one in advice[:FIRST]]
    numbered = "\n".join(f"{number}. {text}" for number, text in enumerate(texts, start=1))
    compared = next(one for one in advice if one.situation == _COMPARE)
    slower = f"The diagnosis says that GRCN is about 7 times slower than DRAGON. {compared.gain}\n\n"
    return f"{numbered}\n\n{slower if compared.complete else ''}{_where_it_holds(advice[:FIRST], records)}"


def _where_it_holds(advice: Sequence[Recommendation], records: Iterable[Record]) -> str:
    machines: dict[str, list[int]] = {}
    for number, one in enumerate(advice, start=1):
        if one.machine:
            machines.setdefault(one.machine, []).append(number)
    if not machines:
        return "Nothing of this is measured yet."
    where = "; ".join(f"{machine} ({' and '.join(map(str, numbers))})" for machine, numbers in machines.items())
    gpu = "" if any(on_cuda(record) for record in records) else "Nothing is measured on a GPU yet. "
    models = "this package's GRCN and DRAGON, which compute what MMRec's do"
    exact = "That outputs and gradients stay the same does not depend on the machine."
    return f"*{gpu}Measured on {models}: {where}. {exact}*"


def _made(
    shelves: Sequence[Records], situation: str, action: str, copy: str, gains: tuple[Gain, ...]
) -> Recommendation:
    used: list[Record] = []
    sentences, missing = [], []
    for gain in gains:
        try:
            sentence, here = _from_first(gain, shelves)
        except Missing as what:
            missing.append(str(what))
        else:
            sentences.append(sentence)
            used += here.records
    if missing:
        sentences.append(f"Not measured yet, missing: {'; '.join(dict.fromkeys(missing))}.")
    machine = machine_of(used[0]) if used else ""
    return Recommendation(situation, action, copy, " ".join(sentences), not missing, machine)


def _from_first(gain: Gain, shelves: Sequence[Records]) -> tuple[str, Measured]:
    for shelf in shelves[:-1]:
        try:
            return from_nearest(gain, shelf)
        except Missing:
            continue
    return from_nearest(gain, shelves[-1])


def _from(parts: tuple[str, ...], template: str) -> Gain:
    """A sentence on records of these parts, with registered quantities in braces."""

    def gain(records: Records) -> tuple[str, Measured]:
        here = records.together(*parts)
        return here.fill(template), here

    return gain


def _comparison(records: Records) -> tuple[str, Measured]:
    here = records.together("steps")
    sentence = here.fill("Under the same settings, GRCN's step takes {grcn-to-dragon.step, dragon} DRAGON's")
    return f"{sentence} ({quartiles(here.base_over('dragon'))}).", here


def _paper_routing(records: Records) -> tuple[str, Measured]:
    """What routing as in the paper does to accuracy: with three iterations, and with one where the study has it."""
    for record in full_studies(records):
        pair = full_pair(record, "grcn-live", "grcn")
        if pair is not None:
            fewer = full_pair(record, "grcn-live-1", "grcn")
            own = find(full_variants(record), variant="grcn")["recall@20"]
            sentence = f"Routing as in the paper {_changes(pair)} with three iterations, from {own:.4f}"
            sentence += f"; with one it {_changes(fewer)}" if fewer else ""
            return f"{sentence} ({counted(pair['seeds'], 'paired seed')}, 95% intervals).", Measured((record,))
    raise Missing("an accuracy study of routing as in the paper with enough seeds")


def _changes(pair: Row) -> str:
    low, high = sorted(abs(pair[f"recall@20_{end}"]) for end in ("low", "high"))
    by = f"recall@20 by {abs(pair['recall@20']):.4f} ({low:.4f} to {high:.4f})"
    if pair["verdict"] in (WORSE, BETTER):
        return f"{'lowers' if pair['verdict'] == WORSE else 'raises'} {by}"
    span = f"({pair['recall@20_low']:+.4f} to {pair['recall@20_high']:+.4f})"
    return f"leaves recall@20 as it is {span}" if pair["verdict"] == EQUIVALENT else f"may change recall@20 {span}"


def _choice(records: Records) -> tuple[str, Measured]:
    for record in full_studies(records):
        best = sorted(full_variants(record), key=lambda row: row["recall@20"], reverse=True)[:4]
        shown = "; ".join(
            f"{row['label']} {row['recall@20']:.4f} ({row['recall@20_low']:.4f} to {row['recall@20_high']:.4f})"
            for row in best
        )
        seeds = min(row["seeds"] for row in best)
        return f"Test recall@20, best first, over {seeds} seeds or more: {shown}.", Measured((record,))
    raise Missing("an accuracy study with enough seeds")


_ACCELERATE = """\
# pip install PATH-OF-THIS-CHECKOUT
from mmrec_helpers.mmrec import accelerate
model = accelerate(model)  # after it is made, before Trainer()"""
_COMPARE = "You compare GRCN with DRAGON"
_STEPS = ("steps",)
_SITUATIONS: list[tuple[str, str, str, tuple[Gain, ...]]] = [
    (
        "You run MMRec's GRCN",
        "Do not tune GRCN's `n_layers`: set it to 0.",
        "n_layers: 0  # in configs/model/GRCN.yaml",
        (
            _from(
                ("steps", "routing"),
                "As shipped the loop's messages arrive nowhere: output, loss and gradients stay the same (to "
                "{routing.change}) and the step is {loop.saving, grcn-0} shorter: {grcn-0.step} instead of "
                "{grcn.step}.",
            ),
        ),
    ),
    (
        "You run MMRec's GRCN or DRAGON and can install a package",
        "Make the rest fast: install this package and accelerate the model.",
        _ACCELERATE,
        (
            _from(
                _STEPS,
                "In all, GRCN's step becomes {grcn-fused.factor, grcn-fused} faster than as shipped "
                "({grcn-fused.step}), DRAGON's {dragon-fused.factor, dragon-fused} ({dragon-fused.step}), with the "
                "same outputs and gradients (up to rounding) and checkpoints.",
            ),
        ),
    ),
    (
        "You wonder whether to repair the routing",
        "Do not repair the routing for accuracy, unless your own validation says otherwise.",
        "",
        (_paper_routing,),
    ),
    (
        "You want the routing of the paper all the same",
        "Reverse the loop's edges (two lines, see the page on `accelerate`) and accelerate the model.",
        _ACCELERATE.replace("(model)", '(model, routing="live")'),
        (_from(_STEPS, "Its step becomes {grcn-live-fused.factor, grcn-live-fused} faster."),),
    ),
    (
        "You are short of memory",
        "Accelerate the model before you turn to checkpointing, mixed precision or features on the host.",
        _ACCELERATE,
        (
            _from(
                _STEPS,
                "Peak memory of the reference's step over the fast one's: GRCN {grcn-fused.memory}, DRAGON "
                "{dragon-fused.memory}.",
            ),
        ),
    ),
    (
        _COMPARE,
        "Give both the same modalities, batch and settings, and time them in one run.",
        "python -m mmrec_helpers measure steps --out FOLDER",
        (_comparison,),
    ),
    (
        "You choose a model for your data",
        "Train several seeds of each; validation chooses. One seed decides nothing.",
        "",
        (_choice,),
    ),
]
