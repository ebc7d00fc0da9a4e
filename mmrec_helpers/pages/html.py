"""A notebook as one HTML file that opens offline: it asks no network for anything."""

import base64
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup, Tag
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert.exporters.html import HTMLExporter
from nbconvert.exporters.templateexporter import TemplateExporter
from nbconvert.filters.highlight import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from mmrec_helpers.files import without_folders, write_text
from mmrec_helpers.pages.collection import notebook_parameters, notebook_title
from mmrec_helpers.pages.words import explain_words

HERE = Path(__file__).parent
_UNKNOWN = re.compile(r"<mi>\\([A-Za-z]+)</mi>")
_MARK = re.compile(r'<data class="quantity" data-quantity="[\w.-]+" value="[-+.\w]+">|</data>')
_LOADING = re.compile(r"url\(\s*['\"]?\s*(?:https?:)?//|@import", re.IGNORECASE)


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
    """nbconvert's Markdown renderer with MathML in place of ``$...$``; what goes wrong is kept in ``problems``.

    trusted  keep HTML in the text, as in a notebook's own Markdown; else only the marks of quantities are kept, because
             names of data sets, files and errors come from outside. Links that would run a script are never kept.
    """

    def __init__(self, trusted: bool = False, **options: Any) -> None:
        super().__init__(escape=not trusted, allow_harmful_protocols=False, exclude_anchor_links=True, **options)
        self.trusted = trusted
        self.problems: list[str] = []

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return super().image(text, url, title) if self.trusted else escape(text)

    def inline_html(self, html: str) -> str:
        return html if _MARK.fullmatch(html) else super().inline_html(html)

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
    """Computed Markdown, formulas included, as an HTML fragment; HTML in it is shown as text."""
    return MarkdownWithMath(renderer=FormulaRenderer()).render(text)


@dataclass(frozen=True)
class PageContext:
    """What a page shows besides its notebook."""

    run_title: str = ""
    answer: str = ""  # Markdown; shown below the title
    failure: str = ""  # the error's last line; marks the page
    failed_cell: int | None = None  # counted from 1
    footer: str = ""
    has_index: bool = False
    warnings: list[str] = field(default_factory=list)


def export_page(notebook: Path | NotebookNode, target: Path, context: PageContext | None = None) -> list[str]:
    """Write the HTML page of an executed notebook; returns what is wrong with it, in words (no alternative text, ...).

    The page is one file. Raises NotWritten when it cannot be written.
    """
    context = context or PageContext()
    node = notebook if isinstance(notebook, NotebookNode) else nbformat.read(notebook, as_version=4)
    exporter = PageExporter()
    resources = {
        "page": context,
        "title": notebook_title(node) or target.stem,
        "answer_html": markdown_to_html(context.answer) if context.answer else "",
        "parameters": parameter_rows(node),
        "css": stylesheet("page.css", "shared.css"),
    }
    body, _ = exporter.from_notebook_node(node, resources)
    soup = BeautifulSoup(body, "html.parser")
    _answer_first(soup)
    _merge_code(soup)
    _number_headings(soup)
    _write_contents(soup)
    _tidy_tables(soup)
    explain_words(soup)
    problems = [*exporter.problems, *_missing_alternatives(soup)]
    page = str(soup)
    problems += [f"the page would load {what}" for what in external_requests(page)]
    write_text(target, page)
    return problems


def stylesheet(*names: str) -> str:
    """These files of the template, one after the other."""
    return "\n".join((HERE / "template" / name).read_text(encoding="utf-8") for name in names)


class PageExporter(HTMLExporter):
    """nbconvert with this package's template, and MathML for formulas."""

    def __init__(self, **options: Any) -> None:
        super().__init__(extra_template_basedirs=[str(HERE)], template_name="template", **options)
        self.problems: list[str] = []

    @property
    def default_config(self) -> Any:
        config = super().default_config
        config.CoalesceStreamsPreprocessor.enabled = True
        config.NbConvertBase.display_data_priority = [
            "text/html",
            "text/markdown",
            "image/svg+xml",
            "text/latex",
            "image/png",
            "image/jpeg",
            "text/plain",
        ]
        return config

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """The notebook's own Markdown."""
        return self._rendered(source, trusted=True, attachments=context.get("cell", {}).get("attachments", {}))

    def _rendered(self, source: str, **options: Any) -> str:
        renderer = FormulaRenderer(**options)
        rendered = MarkdownWithMath(renderer=renderer).render(source)
        self.problems += renderer.problems
        return rendered

    def from_notebook_node(self, nb: NotebookNode, resources: Any = None, **options: Any) -> Any:
        """Page and resources, as HTMLExporter's less its own pass over the page (``export_page`` makes another)."""
        resources = self._init_resources(resources)
        self.register_filter("image_source", _image_source)
        self.register_filter("computed2html", self._rendered)
        self.register_filter("highlight_code", Highlight2HTML(pygments_lexer="ipython3", parent=self))
        return TemplateExporter.from_notebook_node(self, nb, resources, **options)


def parameter_rows(notebook: NotebookNode) -> list[dict[str, Any]]:
    """name, value, default, changed and help of each parameter; folders are told by their last part only."""
    given = without_folders(notebook.metadata.get("papermill", {}).get("parameters", {}))
    rows = []
    for parameter in notebook_parameters(notebook):
        if parameter.name == "run":  # where this page lies; says nothing about what was measured
            continue
        value = repr(given[parameter.name]) if parameter.name in given else parameter.default
        rows.append(
            {
                "name": parameter.name,
                "value": value,
                "default": parameter.default,
                "assigned": f"{parameter.name} = {value}",
                "changed": value.strip("'\"") != parameter.default.strip("'\""),
                "help": parameter.help,
            }
        )
    return rows


def external_requests(page: str) -> list[str]:
    """What a browser would fetch from a network when it opens the page. Links to follow do not count."""
    soup = BeautifulSoup(page, "html.parser")
    found = ["what a <script> asks for"] if soup.find("script") else []
    for element in soup.find_all(True):
        for name in ("src", "srcset", "data", "poster", "background", "xlink:href", "action", "href"):
            value = element.get(name)
            fetched = name != "href" or element.name not in ("a", "area")
            if fetched and isinstance(value, str) and re.match(r"\s*(?:https?:)?//", value):
                found.append(f"<{element.name} {name}={value[:80]!r}>")
        if _LOADING.search(str(element.get("style", ""))):
            found.append(f"<{element.name} style={str(element['style'])[:80]!r}>")
    for style in soup.find_all("style"):
        found += [f"<style> {match.group()!r}" for match in _LOADING.finditer(style.get_text())]
    return found


def _image_source(data: str, mime: str) -> str:
    if mime == "image/svg+xml":
        data = base64.b64encode(data.encode()).decode()
    return f"data:{mime};base64,{''.join(data.split())}"


def _answer_first(soup: BeautifulSoup) -> None:
    """Put the answer right below the title, before what introduces it and the contents."""
    title, answer = soup.select_one("main h1"), soup.select_one("main > section.answer")
    if title and answer:
        title.insert_after(answer.extract())
        if contents := soup.select_one("main > .contents-box"):
            answer.insert_after(contents.extract())


def _merge_code(soup: BeautifulSoup) -> None:
    """Put the code of consecutive cells that show nothing into the row of the next one, and name each row apart."""
    waiting: list[Tag] = []  # sections without outputs, up to now
    for section in soup.select("main > section"):
        summary = section.select_one(":scope > details.code > summary")
        if "code-cell" not in section.get_attribute_list("class") or summary is None:
            waiting = []
            continue
        for before in waiting:
            for part in reversed(before.select("details.code div.highlight")):
                summary.insert_after(part)
            before.decompose()
        shows = section.select_one(".outputs > *") or "failed" in section["class"]
        waiting = [] if shows else [section]
    for number, summary in enumerate(soup.select("main details.code > summary"), start=1):
        cells = len(summary.find_next_siblings("div", class_="highlight"))
        summary.string = "Show code" if cells == 1 else f"Show code ({cells} cells)"
        hidden = soup.new_tag("span", attrs={"class": "hidden"})
        hidden.string = f", row {number}"
        summary.append(hidden)


def _number_headings(soup: BeautifulSoup) -> None:
    """Give every heading of the content an id of its own and a link to itself."""
    used: set[str] = set()
    for heading in soup.select("main h1, main h2, main h3, main h4"):
        slug = re.sub(r"[^a-z0-9]+", "-", heading.get_text().lower()).strip("-") or "section"
        name = _unused(slug, used, "-")
        heading["id"] = name
        if heading.name in ("h2", "h3"):
            link = soup.new_tag("a", href=f"#{name}", attrs={"class": "anchor", "aria-label": "Link to this section"})
            link.string = "#"
            heading.append(link)


def _unused(name: str, used: set[str], between: str) -> str:
    """The name, or name and number, that is not used yet; now it is."""
    found = next(n for n in [name, *(f"{name}{between}{i}" for i in range(2, 10_000))] if n not in used)
    used.add(found)
    return found


def _write_contents(soup: BeautifulSoup) -> None:
    """Fill the elements of class ``contents`` with links to the headings of levels two and three."""
    headings = soup.select("main h2, main h3")
    for place in soup.select(".contents"):
        if not headings:
            (place.find_parent(class_="contents-box") or place).decompose()
            continue
        for heading in headings:
            entry = soup.new_tag("li", attrs={"class": heading.name})
            link = soup.new_tag("a", href=f"#{heading['id']}")
            for part in BeautifulSoup(heading.decode_contents(), "html.parser").contents:
                if not (isinstance(part, Tag) and "anchor" in part.get_attribute_list("class")):
                    link.append(part.__copy__())
            entry.append(link)
            place.append(entry)


def _tidy_tables(soup: BeautifulSoup) -> None:
    """Scopes for header cells that have none, no styles of their own, and a box that scrolls around each table."""
    for style in soup.select("main style[scoped]"):
        style.decompose()
    used: set[str] = set()
    for table in soup.select("main table"):
        if table.find_parent("figure") or table.find_parent(class_="scroll"):
            continue
        for element in (table, *table.find_all("tr")):
            element.attrs = {name: value for name, value in element.attrs.items() if name not in ("border", "style")}
        for cell in table.find_all("th", scope=False):
            cell["scope"] = "col" if cell.find_parent("thead") else "row"
        caption = table.find("caption")
        label = _unused(caption.get_text(" ", strip=True) if caption else "Table", used, " ")
        table.wrap(
            soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0", "role": "region", "aria-label": label})
        )


def _missing_alternatives(soup: BeautifulSoup) -> list[str]:
    missing = [image for image in soup.find_all("img") if not str(image.get("alt", "")).strip()]
    for image in missing:
        image["alt"] = "Image without description"
    return [f"{len(missing)} image(s) without alternative text (use show_figure)"] if missing else []
