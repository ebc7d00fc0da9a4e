"""What notebooks show besides plain text: figures with alternative text, tables, computed sentences.

Everything also reads well in JupyterLab; the HTML export adds the page's own style.
"""

import base64
import io
import os
import re
import sys
import time
from collections.abc import Sequence
from html import escape
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_integer_dtype

from mmrec_helpers.config import InputError, choose, number
from mmrec_helpers.progress import Level, describe, share_done


def show_figure(figure: Any, alt: str, caption: str = "", kind: str = "svg", dpi: int = 110) -> None:
    """Display a matplotlib figure with alternative text and close it.

    alt      what the figure shows, for a reader who does not see it (one sentence, numbers included)
    caption  a sentence below it (plain text); none by default
    kind     "svg" (sharp, and black and white become the colours of the page's text and paper) or "png" (smaller for
             dense lines and scatter plots; on white)
    """
    choose("figure kind", kind, ("svg", "png"))
    if not alt.strip():
        raise InputError("show_figure: alt is empty: expected a sentence that says what the figure shows")
    import matplotlib
    from IPython.display import display

    buffer = io.BytesIO()
    # Salted with the text, ids differ from those of another figure on the page.
    options = {"metadata": {"Date": None}, "transparent": True} if kind == "svg" else {}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": alt + caption}):
        figure.savefig(buffer, format=kind, dpi=dpi, bbox_inches="tight", **options)
    if "matplotlib.pyplot" in sys.modules:  # else it was not made there, and no other display of it is due
        sys.modules["matplotlib.pyplot"].close(figure)
    if kind == "svg":
        return show_svg(_themed(buffer.getvalue().decode()), alt, caption)
    about = {"image/png": {"alt": alt, "caption": caption}}
    display({"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": alt}, raw=True, metadata=about)


def show_svg(markup: str, alt: str, caption: str = "") -> None:
    """Display SVG inline, so that it has the page's colours and its ``<title>`` tooltips work."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    named = markup.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)
    _show_html(f'<figure class="drawing" tabindex="0">{named}{below}</figure>', alt)


def _themed(svg: str) -> str:
    """matplotlib's SVG to stand in a page: black and white are the page's (or JupyterLab's) text and paper, no rule
    reaches beyond it, and only what is referred to has an id."""
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    used = set(re.findall(r"#([\w-]+)[\")]", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = svg.replace("#000000", "currentColor").replace("#ffffff", "var(--paper, var(--jp-layout-color0, #fff))")
    return re.sub(r"\n\s*", "\n", svg.replace("<svg", '<svg fill="currentColor" stroke-linejoin="round"', 1))


def show_table(frame: pd.DataFrame, caption: str = "", digits: int = 3, index: bool = False) -> None:
    """Display a DataFrame: numbers to ``digits`` significant digits and to the right, missing values as a dash.

    Underscores in the names of columns become spaces. Without rows it is a sentence: the caption, and "none".
    """
    if not len(frame):
        return show_markdown(f"{caption}: none." if caption else "None.")
    frame = frame.reset_index() if index else frame
    names = [str(name).replace("_", " ") for name in frame.columns]
    right = [' class="number"' if _is_numeric(frame.iloc[:, at]) else "" for at in range(len(names))]
    head = "".join(f'<th scope="col"{side}>{escape(name)}</th>' for name, side in zip(names, right))
    # As plain objects: a column of a nullable type gives <NA>, one with a missing whole number floats.
    rows = frame.astype(object).itertuples(index=False, name=None)
    whole = [is_integer_dtype(frame.iloc[:, at]) for at in range(len(names))]
    body = "".join(f"<tr>{_cells(row, right, whole, digits)}</tr>\n" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    table = f'<table class="dataframe">{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>'
    _show_html(table, frame.to_string(index=False))


def _is_numeric(column: pd.Series) -> bool:
    """Whether a column holds numbers alone, missing values aside."""
    values = column.dropna()
    return bool(len(values)) and all(isinstance(v, Number) and not isinstance(v, (bool, np.bool_)) for v in values)


def _cells(row: tuple, right: list[str], whole: list[bool], digits: int) -> str:
    texts = [number(value, 15 if counts else digits) for value, counts in zip(row, whole)]
    return "".join(f"<td{side}>{escape(text)}</td>" for text, side in zip(texts, right))


def show_markdown(text: str) -> None:
    """Display a sentence or more of Markdown with computed numbers in it; ``$...$`` is a formula."""
    from IPython.display import display

    display({"text/markdown": text, "text/plain": without_marks(text)}, raw=True)


def without_marks(text: str) -> str:
    """A text without the marks of registered quantities."""
    return re.sub(r"</?data\b[^>]*>", "", text)


def show_answer(question: str, answer: str) -> None:
    """Display a notebook's answer (Markdown), boxed; the exported page shows it at its head instead."""
    from mmrec_helpers.pages.html import markdown_to_html

    box = f'<section class="answer"><p class="label">{escape(question)}</p>{markdown_to_html(answer)}</section>'
    _show_html(box, without_marks(f"{question}\n{answer}"), role="answer")


def show_notice(text: str) -> None:
    """Display a boxed warning (plain text)."""
    _show_html(f'<div class="notice warning" role="note"><strong>Note.</strong> {escape(text)}</div>', text)


def shell() -> Any:
    """The notebook's IPython; None in plain Python."""
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()


def show_style() -> None:
    """Give JupyterLab the look that boxes, tables and captions have on exported pages, which have it already."""
    from mmrec_helpers.pages.html import stylesheet

    if shell() is not None:
        _show_html(f"<style>{stylesheet('shared.css')}</style>", "", role="style")


def show_prose_table(frame: pd.DataFrame, caption: str = "", kind: str = "") -> None:
    """Display a table of Markdown text: emphasis, code and links in its cells are kept. On a narrow screen each row is
    a card.

    kind  a word that colours it: a verdict
    """
    from mmrec_helpers.pages.html import markdown_to_html

    names = [escape(str(name)) for name in frame.columns]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = ""
    for row in frame.itertuples(index=False):
        texts = [markdown_to_html(str(cell)).strip().removeprefix("<p>").removesuffix("</p>") for cell in row]
        cells = (f'<td data-label="{name}">{text}</td>' for name, text in zip(names, texts))
        body += f"<tr>{''.join(cells)}</tr>\n"
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    label = f"prose {kind.replace(' ', '-')}".strip()
    table = f'<table class="{label}">{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>'
    _show_html(table, without_marks(frame.to_string(index=False)))


def takeaway(text: str) -> None:
    """Display the boxed sentence that closes a section (Markdown)."""
    show_markdown("\n".join(f"> {line}" for line in text.strip().splitlines()))


def device_sentence(use: pd.DataFrame) -> str:
    """``device_use`` in a sentence: kernel launches per step and the device's idle share, for each model.

    use  columns model, launches_per_step, idle_share (NaN where no device ran)
    """
    if use["idle_share"].isna().all():
        return "The steps ran on a CPU: kernel launches and idle time of a GPU are not applicable."
    sentences = [
        f"{row.model} launches {row.launches_per_step:,.0f} kernels per step and leaves the device idle for "
        f"{row.idle_share:.0%} of it"
        for row in use.itertuples()
    ]
    return "; ".join(sentences) + " (under the profiler, which lengthens the host's part)."


class NotebookBar:
    """Watches work in a notebook: a bar with the phase that it is in, gone once the work is done.

    title       of the work
    expected_s  how long it takes, where that is known; it is said before the work begins

    What the bar says is also written to the file that the environment variable MMREC_PROGRESS names, for the terminal
    of whoever runs the notebook.
    """

    def __init__(self, title: str, expected_s: float | None = None) -> None:
        from IPython.display import display

        self.title, self.expected_s, self._began = title, expected_s, time.perf_counter()
        about = {"metadata": {"role": "progress"}, "display_id": True}
        self._handle = display({"text/plain": ""}, raw=True, **about) if shell() else None
        self._file = os.environ.get("MMREC_PROGRESS")

    def __call__(self, levels: Sequence[Level]) -> None:
        elapsed = time.perf_counter() - self._began
        text, share = (
            describe(self.title, levels, elapsed, self.expected_s),
            share_done(levels, elapsed, self.expected_s),
        )
        value = "" if share is None else f' value="{share:.3f}"'
        bar = f'<progress{value} aria-label="{escape(self.title)}"></progress>'
        self._update({"text/html": f'<div class="progress">{bar}<span>{escape(text)}</span></div>', "text/plain": text})
        if self._file:
            Path(self._file).write_text(text, encoding="utf-8")

    def close(self) -> None:
        self._update({"text/plain": ""})
        if self._file:
            Path(self._file).write_text("", encoding="utf-8")

    def _update(self, bundle: dict[str, str]) -> None:
        if self._handle is not None:
            self._handle.update(bundle, raw=True, metadata={"role": "progress"})


def _show_html(markup: str, plain_text: str, role: str = "") -> None:
    """``role`` goes into the output's metadata: the exported page leaves out what has one."""
    from IPython.display import display

    bundle = {"text/html": markup, "text/plain": plain_text}
    display(bundle, raw=True, metadata={"role": role} if role else None)
