"""What the prediction for GPUs says of the claims that wait for one. A prediction decides nothing: see the ledger."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mmrec_helpers.claims.published_runs import reported_epoch
from mmrec_helpers.claims.rules_memory import CLAIMED_MB, PROMISED_FALL
from mmrec_helpers.claims.rules_time import AROUND
from mmrec_helpers.experiments.prediction import BOUNDS, committed_record

NOISE = 0.05  # a change of the step below this share counts as none
_ALONE = ("checkpointing", "mixed-precision", "features-on-host")


def predicted_verdicts(content: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Claim to what a "prediction" record's content says of it: "supported", "refuted" or "open", and why.

    content  None: that of the committed record; without one, there are no predictions
    """
    if content is None:
        content = (committed_record() or {}).get("content", {})
    steps = pd.DataFrame(content.get("steps", []))
    if steps.empty:
        return {}
    rules = {"time.grcn": _time_grcn, "memory.amp": _amp, "memory.cpu_features": _cpu_features}
    rules |= {"memory.no_time": _no_time}
    return {claim: "{}: {}".format(*rule(steps)) for claim, rule in rules.items()}


def _time_grcn(steps: pd.DataFrame) -> tuple[str, str]:
    claimed = reported_epoch("GRCN")
    low, high = (1 - AROUND) * claimed, (1 + AROUND) * claimed
    own = _case(steps, "grcn", "diagnosed")
    inside = (own["least_epoch_s"] >= low) & (own["most_epoch_s"] <= high)
    apart = (own["most_epoch_s"] < low) | (own["least_epoch_s"] > high)
    ranges = zip(own.index, own["least_epoch_s"], own["most_epoch_s"], strict=True)
    shown = "; ".join(f"{device} {least:,.0f} to {most:,.0f} s" for device, least, most in ranges)
    excluded = f"excluded on {', '.join(own.index[apart])}" if apart.any() else "excluded on none of them"
    verdict = "supported" if inside.all() else "refuted" if apart.all() else "open"
    return verdict, f"An epoch takes {shown}: {low:,.0f} to {high:,.0f} s is {excluded}."


def _amp(steps: pd.DataFrame) -> tuple[str, str]:
    falls = [1 - (_total_gb(steps, m, "mixed-precision") / _total_gb(steps, m, "plain")).min() for m in _MODELS]
    holds = [fall >= PROMISED_FALL for fall in falls]
    sentence = "Rows of unit length are float32 under autocast too, so arrays at the edges stay 32 bits wide;"
    return _by(all(holds), any(holds)), f"{sentence} memory falls by {max(falls):.0%}."


def _cpu_features(steps: pd.DataFrame) -> tuple[str, str]:
    saved = [(_total_gb(steps, m, "plain") - _total_gb(steps, m, "features-on-host")).max() * 1e3 for m in _MODELS]
    holds = [CLAIMED_MB[0] <= mb <= CLAIMED_MB[1] for mb in saved]
    sentence = f"Peak memory falls by {max(saved):.0f} MB: the copies are kept from the forward to the backward pass."
    return _by(all(holds), any(holds)), sentence


def _no_time(steps: pd.DataFrame) -> tuple[str, str]:
    ratios = {
        setting: pd.concat(_case(steps, m, setting)[f"{b}_ms"] / _case(steps, m, "plain")[f"{b}_ms"] for m, b in _BOTH)
        for setting in _ALONE
    }
    shown = "; ".join(f"{name} {ratio.min():.2f} to {ratio.max():.2f}" for name, ratio in ratios.items())
    helps = [ratio.min() < 1 - NOISE for ratio in ratios.values()]
    sentence = f"Step with each alone over that without, both at the same bound: {shown}. Casts are not counted."
    return _by(not any(helps), not all(helps)), sentence


_MODELS = ("grcn", "dragon")
_BOTH = [(model, bound) for model in _MODELS for bound in BOUNDS]


def _by(all_hold: bool, any_holds: bool) -> str:
    return "supported" if all_hold else "open" if any_holds else "refuted"


def _case(steps: pd.DataFrame, variant: str, settings: str) -> pd.DataFrame:
    return steps[(steps["variant"] == variant) & (steps["settings"] == settings)].set_index("device")


def _total_gb(steps: pd.DataFrame, variant: str, settings: str) -> pd.Series:
    own = _case(steps, variant, settings)
    return own["step_gb"] + own["held_gb"]
