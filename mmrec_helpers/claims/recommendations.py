"""What to do, situation by situation, each with the gain that the records at hand show."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from mmrec_helpers.claims.full_studies import difference_text, full_pair, full_studies, full_variants
from mmrec_helpers.claims.ledger import Measured, Missing, Records, from_nearest, quartiles
from mmrec_helpers.models.variants import VARIANTS
from mmrec_helpers.records import machine_of


@dataclass(frozen=True)
class Recommendation:
    """What to do in one situation.

    situation  who it is for
    action     what to do
    copy       the line to copy, of a settings file or of Python; "" where there is none
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


def recommend(records: Records) -> list[Recommendation]:
    """The recommendations, the first one first."""
    return [_made(records, *situation) for situation in _SITUATIONS]


def recommendation_table(recommendations: Iterable[Recommendation]) -> pd.DataFrame:
    """One row per recommendation, its fields as columns."""
    return pd.DataFrame(list(recommendations), columns=list(Recommendation.__dataclass_fields__))


def _made(records: Records, situation: str, action: str, copy: str, gains: tuple[Gain, ...]) -> Recommendation:
    sentences, used, missing = [], [], []
    for gain in gains:
        try:
            sentence, here = from_nearest(gain, records)
        except Missing as what:
            missing.append(str(what))
        else:
            sentences.append(sentence)
            used += here.records
    if missing:
        sentences.append(f"Not measured yet, missing: {'; '.join(dict.fromkeys(missing))}.")
    machine = machine_of(used[0]) if used else ""
    return Recommendation(situation, action, copy, " ".join(sentences), not missing, machine)


def _from(parts: tuple[str, ...], template: str) -> Gain:
    """A sentence on records of these parts, with registered quantities in braces."""

    def gain(records: Records) -> tuple[str, Measured]:
        here = records.together(*parts)
        return here.fill(template), here

    return gain


def _comparison(records: Records) -> tuple[str, Measured]:
    here = records.together("steps")
    sentence = here.fill("So compared, GRCN's step takes {grcn-to-dragon.step, dragon} DRAGON's")
    return f"{sentence} ({quartiles(here.base_over('dragon'))}).", here


def _difference(first: str, second: str) -> Gain:
    labels = [f'"{VARIANTS[name].label}"' for name in (first, second)]

    def gain(records: Records) -> tuple[str, Measured]:
        for record in full_studies(records):
            pair = full_pair(record, first, second)
            if pair is not None:
                difference = f"{difference_text(pair)}, {pair['seeds']} paired seeds"
                return f"{' minus '.join(labels)}, test recall@20: {difference}.", Measured((record,))
        raise Missing(f"an accuracy study of {' and '.join(labels)} with enough seeds")

    return gain


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


_ACCELERATE = "from mmrec_helpers.mmrec import accelerate; model = accelerate(model)"
_STEPS = ("steps",)
_FAST = "The reference's step over the fast one"
_SITUATIONS: list[tuple[str, str, str, tuple[Gain, ...]]] = [
    (
        "You run MMRec's GRCN",
        "Do not tune `n_layers`: set it to 0 in `configs/model/GRCN.yaml`. The loop changes nothing.",
        "n_layers: 0",
        (
            _from(
                ("steps", "routing"),
                "The output is the same to {routing.change}, and the step {loop.saving, grcn-0} shorter: {grcn-0.step} "
                "in place of {grcn.step}.",
            ),
        ),
    ),
    (
        "You run MMRec's GRCN or DRAGON and can install a package",
        "Accelerate the model: the same outputs, gradients, parameters and checkpoints.",
        _ACCELERATE,
        (_from(_STEPS, _FAST + ": GRCN {grcn-fused.factor, grcn-fused}, DRAGON {dragon-fused.factor, dragon-fused}."),),
    ),
    (
        "You want the routing that the paper describes",
        "Read first what it does to accuracy, and take the fewest iterations that accuracy allows. Then reverse the "
        "loop's edges (two lines, see the page on the switch).",
        _ACCELERATE.replace("(model)", '(model, routing="live")'),
        (
            _difference("grcn-live", "grcn"),
            _difference("grcn-live-1", "grcn-live"),
            _from(_STEPS, _FAST + ": {grcn-live-fused.factor, grcn-live-fused}."),
        ),
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
        "You compare GRCN with DRAGON",
        "Give both the same modalities, batch and settings, and time them in one run.",
        "python -m mmrec_helpers measure steps",
        (_comparison,),
    ),
    (
        "You choose a model for your data",
        "Train several seeds of each; validation chooses. One seed decides nothing.",
        "",
        (_choice,),
    ),
]
