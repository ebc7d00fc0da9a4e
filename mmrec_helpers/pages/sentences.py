"""Numbers in sentences: none, one, all and equal ones are said as such.

f"{share_of(3, 7, 'variant')} run here, and {as_long(1.35)} as before"    # 3 of 7 variants ... 1.35 times as long as
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mmrec_helpers.config import listed, number


def share_of(count: int, total: int, noun: str) -> str:
    """Such as "no variant", "the only variant", "both variants", "all 7 variants", "3 of 7 variants"."""
    if count == 0 or total == 0:
        return f"no {noun}"
    if count < total:
        return f"{count:,} of {total:,} {noun}s"
    return {1: f"the only {noun}", 2: f"both {noun}s"}.get(total, f"all {total:,} {noun}s")


def spanned(low: float, high: float, digits: int = 3) -> str:
    """Such as "1.2 to 1.5"; one number where both read the same."""
    return " to ".join(dict.fromkeys((number(low, digits), number(high, digits))))


def as_long(times: float | str, digits: int = 3) -> str:
    """Such as "1.35 times as long", or "as long" where it is once. ``times`` may be a quantity's marked text."""
    text = times if isinstance(times, str) else f"{number(times, digits)} times"
    return "as long" if re.sub(r"<[^>]*>", "", text) == "1 times" else f"{text} as long"


def percent(share: float, digits: int = 2) -> str:
    """Such as "42%" and "0.0047%": never rounded to none."""
    return f"{number(100 * share, digits)}%"


def which(names: Iterable[str], some: str, none: str) -> str:
    """``some``, the names and a full stop; ``none`` where there are none.

    which([], "Slower than the reference:", "None is slower than the reference.")
    """
    names = list(names)
    return f"{some} {listed(names)}." if names else none


def differs(noise: float | None) -> str:
    """What a control that changes nothing does: "differs by up to 1.3%", or that it does not."""
    return f"differs by up to {percent(noise)}" if noise else "does not differ"


def noise_note(steps: Mapping[str, Any]) -> str:
    """A sentence on how the step times of a record of kind "steps" are to be read."""
    noise, rounds = steps["control"]["noise"], steps["control"]["rounds"]
    if noise is None:
        return "The reference did not run here, so no control was measured."
    apart, total = [f"“{row['label']}”" for row in steps["variants"] if not row["agrees"]], len(steps["variants"])
    named = listed(apart) if len(apart) < 3 else share_of(len(apart), total, "variant")
    note = (
        f"Every ratio is the median of {rounds} paired ratios. A control, the reference once more, {differs(noise)} "
        "from it. Noise is what differs by less, and a ratio whose quartiles lie on both sides of 1."
    )
    if apart:
        note += f" For {named} the ratio of the medians differs by more than the control from the median of the ratios."
    return note + (f" Times are those with {steps['malloc']}." if steps["malloc"] else "")
