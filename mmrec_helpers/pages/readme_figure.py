"""The README's figure, drawn from the committed records: ``python -m mmrec_helpers.pages.readme_figure``."""

import io
from pathlib import Path

import matplotlib as mpl

from mmrec_helpers.config import InputError
from mmrec_helpers.experiments.epoch import find_pairs, side_by_side
from mmrec_helpers.files import reports_folder, write_text
from mmrec_helpers.plots import anatomies_side_by_side, styled

NAME = "step-anatomy.svg"


def draw_readme_figure(folder: str | Path | None = None) -> Path:
    """Draw the steps under the plain settings in ``measured/`` of ``folder`` (default: the checkout's ``reports/``), as
    ``step-anatomy.svg`` in ``folder``; the same records give the same file. InputError without such records."""
    base = Path(folder) if folder else reports_folder()
    steps = side_by_side(find_pairs([base / "measured", base / "tiktok-cpu"]))
    plain = steps[steps["settings"] == "plain"]
    if plain.empty:
        raise InputError(f"{base / 'measured'}: no records of kinds epoch and steps: expected one of each in a folder")
    drawn = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": NAME}), styled(height=4.2, columns=2) as (figure, (left, right)):
        anatomies_side_by_side(left, right, plain)
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    write_text(base / NAME, drawn.getvalue())
    return base / NAME


if __name__ == "__main__":
    print(draw_readme_figure())
