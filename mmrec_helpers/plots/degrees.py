"""How the interactions are spread over users and items."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from mmrec_helpers.plots.axes_text import plain_log

_SIDES = {"user": "#4477AA", "item": "#EE6677"}


def degree_distribution(axes: Axes, degrees: pd.DataFrame) -> Axes:
    """The share of users and of items with at least so many training interactions, both axes logarithmic.

    degrees: columns side ("user" or "item"), degree, share_at_least.
    """
    for side, color in _SIDES.items():
        rows = degrees[(degrees["side"] == side) & (degrees["degree"] > 0)]
        axes.step(rows["degree"], rows["share_at_least"], where="post", color=color, linewidth=1.8, label=f"{side}s")
    plain_log(axes)
    axes.set_xlabel("training interactions")
    axes.set_ylabel("share with at least as many")
    axes.legend(loc="lower left")
    return axes
