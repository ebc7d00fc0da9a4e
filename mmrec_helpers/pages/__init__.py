"""What notebooks call to show something, the runner, and the HTML pages."""

from mmrec_helpers.config import number
from mmrec_helpers.pages.display import (
    show_figure,
    show_markdown,
    show_prose_table,
    show_svg,
    show_table,
    takeaway,
)
from mmrec_helpers.pages.notebook import Session, start
from mmrec_helpers.pages.sentences import noise_note

__all__ = [
    "Session",
    "noise_note",
    "number",
    "show_figure",
    "show_markdown",
    "show_prose_table",
    "show_svg",
    "show_table",
    "start",
    "takeaway",
]
