"""Rules for the claims about the memory settings: checkpointing, mixed precision, features on the host."""

from __future__ import annotations

from mmrec_helpers.claims.ledger import (
    FASTER,
    SLOWER,
    Measured,
    Missing,
    Records,
    Row,
    direction,
    find,
    noise_note,
    on_cuda,
    quartiles,
    rule,
    verdict_of,
)
from mmrec_helpers.data import PRESETS
from mmrec_helpers.experiments.memory_settings import ALONE, LABELS, MODELS, NONE

KIND = "memory-settings"
ON_CUDA = f"a record of kind {KIND!r} on CUDA"
CHECKPOINTING, PRECISION, HOST = ALONE
NOTICEABLE = 0.01  # a change of memory below this share is none
PROMISED_FALL, CLAIMED_MB = 0.4, (400.0, 620.0)
HALF_TYPES = ("float16", "bfloat16")
FLOAT_BYTES, DIAGNOSED_BATCH = 4, 4096


@rule("memory.checkpoint")
def memory_checkpoint(here: Measured):
    shown, less, longer = [], [], []
    for label, none, row in _rows(here, CHECKPOINTING):
        less.append(_fall(none, row) > NOTICEABLE)
        longer.append(direction(row) == SLOWER)
        shown.append(f"{label}'s peak {_changes(_fall(none, row))} and its step takes {_times(row)} as long")
    return verdict_of(*less, *longer) if any(less) else "refuted", f"With checkpointing alone {'; '.join(shown)}."


@rule("memory.amp")
def memory_amp(here: Measured):
    shown, kept = [], []
    for label, none, row in _rows(here, PRECISION):
        narrow = sum(row["edge_bytes"].get(name, 0) for name in HALF_TYPES) / sum(row["edge_bytes"].values())
        kept += [narrow > 0.5, _fall(none, row) >= PROMISED_FALL]
        shown.append(
            f"{narrow:.0%} of {label}'s edge arrays are 16 bits wide and its peak {_changes(_fall(none, row))}"
        )
    sentence = f"With {here.content['precision']} autocast alone {'; '.join(shown)} (promised: 40 to 50 %)."
    if not on_cuda(here.records[0]):
        return "undecided", f"{sentence} Autocast narrows other operators on CUDA. Missing: {ON_CUDA}."
    return verdict_of(*kept), sentence


@rule("memory.cpu_features", choosing=True)
def memory_cpu_features(records: Records):
    shape = PRESETS["music4all"]
    features_mb = shape.n_items * (shape.visual + shape.textual) * FLOAT_BYTES / 1e6
    steps = -(-shape.n_train // DIAGNOSED_BATCH)
    computed = (
        f"At the diagnosed sizes the raw features are {features_mb:.0f} MB, copied in each of {steps} steps: "
        f"{features_mb * steps / 1e3:.0f} GB per epoch."
    )
    if not records.as_reported().all(KIND):
        raise Missing(f"{ON_CUDA} at the diagnosed size (on a CPU nothing is copied)", computed)
    here = records.as_reported().together(KIND)
    saved = {label: (none["total_bytes"] - row["total_bytes"]) / 1e6 for label, none, row in _rows(here, HOST)}
    shown = ", ".join(f"{mb:.0f} MB with {label}" for label, mb in saved.items())
    sentence = f"Peak device memory (held and of a step) falls by {shown}. {computed}"
    return verdict_of(*(CLAIMED_MB[0] <= mb <= CLAIMED_MB[1] for mb in saved.values())), sentence, here


@rule("memory.no_time")
def memory_no_time(here: Measured):
    settings = ALONE if on_cuda(here.records[0]) else (CHECKPOINTING, PRECISION)
    rows = [(LABELS[setting], label, row) for setting in settings for label, _, row in _rows(here, setting)]
    shown = "; ".join(f"{label} with {setting} {_times(row)}" for setting, label, row in rows)
    sentence = f"The step with each alone, over that without: {shown}."
    if HOST not in settings:
        sentence += f" On a CPU nothing is copied and autocast has no fast units. Missing: {ON_CUDA}."
        return "undecided", sentence
    helps = sorted({setting for setting, _, row in rows if direction(row) == FASTER})
    sentence += f" Shorter with: {', '.join(helps) or 'none of them'}."
    return "supported" if not helps else "refuted" if len(helps) == len(ALONE) else "partly", sentence


def _rows(here: Measured, setting: str) -> list[tuple[str, Row, Row]]:
    """Per model its label, its row without any setting and that with one alone."""
    rows = here.content["rows"]
    return [
        (label, find(rows, model=model, setting=NONE), find(rows, model=model, setting=setting))
        for label, model in MODELS.items()
    ]


def _fall(none: Row, row: Row) -> float:
    return 1 - row["peak_bytes"] / none["peak_bytes"]


def _times(row: Row) -> str:
    return f"{row['ratio']['median']:.2f} times{noise_note(row)} ({quartiles(row['ratio'])})"


def _changes(fall: float) -> str:
    return f"falls by {fall:.0%}" if fall > NOTICEABLE else "rises" if fall < -NOTICEABLE else "stays as it is"
