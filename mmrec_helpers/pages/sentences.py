"""Numbers in sentences: none, one, all and equal ones are said as such.

f"{share_of(3, 7, 'variant')} run here, and {as_long(1.35)} as before"    # 3 of 7 variants ... 1.35 times as long as
"""

import re
from collections.abc import Iterable

from mmrec_helpers.config import listed
from mmrec_helpers.pages.display import number


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
