"""Records on disk, what notebooks call, the runner, and the HTML pages."""

from mmrec_helpers.files import NotWritten
from mmrec_helpers.pages.display import (
    number,
    show_figure,
    show_markdown,
    show_prose_table,
    show_svg,
    show_table,
    takeaway,
)
from mmrec_helpers.pages.notebook import Session, start
from mmrec_helpers.records.provenance import provenance
from mmrec_helpers.records.record import find_records, read_record, write_record

__all__ = [
    "NotWritten",
    "Session",
    "find_records",
    "number",
    "provenance",
    "read_record",
    "show_figure",
    "show_markdown",
    "show_prose_table",
    "show_svg",
    "show_table",
    "start",
    "takeaway",
    "write_record",
]
