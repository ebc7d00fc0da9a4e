"""Markdown with formulas to HTML with MathML, which browsers draw without a script."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

_UNKNOWN = re.compile(r"<mi>\\([A-Za-z]+)</mi>")


def mathml(tex: str, block: bool = False) -> tuple[str, str | None]:
    """The formula as MathML, and what is wrong with it (None if nothing).

    A formula that cannot be converted comes back as its source in ``<code>``.
    """
    source = re.sub(r"\\(begin|end)\{aligned\}", r"\\\1{split}", tex.strip())
    source = re.sub(r"\\(?:mathrm|operatorname\*)\{([A-Za-z ]+)\}", r"\\text{\1}", source)
    try:
        markup = convert(source, display="block" if block else "inline")
    except Exception as error:
        return f"<code>{escape(tex)}</code>", f"formula {tex.strip()!r}: {type(error).__name__} {error}"
    unknown = _UNKNOWN.search(markup)
    if unknown or "<mi>&</mi>" in markup:
        return f"<code>{escape(tex)}</code>", f"formula {tex.strip()!r}: {unknown[1] if unknown else '&'} is not known"
    return markup, None


class FormulaRenderer(IPythonRenderer):
    """nbconvert's Markdown renderer with MathML in place of ``$...$``; what goes wrong is kept in ``problems``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(escape=False, exclude_anchor_links=True, **options)
        self.problems: list[str] = []

    def inline_math(self, body: str) -> str:
        return self._formula(body, block=False)

    def block_math(self, body: str) -> str:
        return self._formula(body, block=True)

    def latex_environment(self, name: str, body: str) -> str:
        return self._formula(f"\\begin{{{name}}}{body}\\end{{{name}}}", block=True)

    def _formula(self, tex: str, block: bool) -> str:
        markup, problem = mathml(tex, block)
        if problem:
            self.problems.append(problem)
        return f'<span class="formula">{markup}</span>' if block else markup


def markdown_to_html(text: str) -> str:
    """Markdown, formulas included, as an HTML fragment."""
    return MarkdownWithMath(renderer=FormulaRenderer()).render(text)
