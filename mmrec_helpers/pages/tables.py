"""Tables of notebooks made easy to read: header scopes, numbers to the right, text to the left."""

from __future__ import annotations

import re

from bs4 import Tag

_ONE = r"[+-−]?\s*[\d,.\u202f ]*\d(?:\.\d*)?(?:e[+-]?\d+)?\s*[%x×]?"
_NUMBER = re.compile(rf"{_ONE}(?: to {_ONE})?|nan|inf|–|-|", re.IGNORECASE)


def tidy_table(table: Tag) -> None:
    """Add ``scope`` to header cells and class ``number`` to cells of numeric columns, in place."""
    for style in table.find_parent().find_all("style", attrs={"scoped": True}):
        style.decompose()
    for name in ("border", "style"):
        table.attrs.pop(name, None)
    rows = [[*_cells(row)] for row in table.find_all("tr")]
    for row in rows:
        for cell in row:
            if cell.name == "th" and "scope" not in cell.attrs:
                cell["scope"] = "col" if cell.find_parent("thead") or _is_head(row) else "row"
    for row in table.find_all("tr"):
        row.attrs.pop("style", None)
    _align(_grid(rows))


def _cells(row: Tag) -> list[Tag]:
    return row.find_all(["th", "td"], recursive=False)


def _is_head(row: list[Tag]) -> bool:
    return len(row) > 1 and all(cell.name == "th" for cell in row)


def _grid(rows: list[list[Tag]]) -> dict[int, list[Tag]]:
    """Column number to the cells that begin in it, row and column spans counted."""
    columns: dict[int, list[Tag]] = {}
    taken: set[tuple[int, int]] = set()
    for y, row in enumerate(rows):
        x = 0
        for cell in row:
            while (y, x) in taken:
                x += 1
            width, height = int(cell.get("colspan", 1)), int(cell.get("rowspan", 1))
            taken |= {(y + j, x + i) for j in range(height) for i in range(width)}
            if width == 1:
                columns.setdefault(x, []).append(cell)
            x += width
    return columns


def _align(columns: dict[int, list[Tag]]) -> None:
    for cells in columns.values():
        body = [cell.get_text(strip=True) for cell in cells if cell.name == "td"]
        if body and any(any(c.isdigit() for c in text) for text in body) and all(_NUMBER.fullmatch(t) for t in body):
            for cell in cells:
                cell["class"] = [*cell.get("class", []), "number"]
