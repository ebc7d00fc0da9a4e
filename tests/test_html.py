"""Pages: offline, formulas as MathML, contents, alternative text, foldable code, tables; and the index."""

import re
import shutil
import subprocess

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mmrec_helpers.pages.html import PageContext, export_page, external_requests, markdown_to_html, mathml
from mmrec_helpers.pages.index import build_index, build_reports_index, link_pages
from mmrec_helpers.records import write_record

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M0 0h9"/></svg>'
FRAME = pd.DataFrame({"model": ["GRCN", "DRAGON"], "step ms": [12.5, 3.25], "share": ["12 %", "4 %"]})


def shown(data, **metadata):
    return new_output("display_data", data=data, metadata=metadata)


def notebook(*cells):
    return new_notebook(cells=[new_markdown_cell("# What does *one* step cost?\n\nIntroduction."), *cells])


@pytest.fixture
def page(tmp_path):
    """Export cells and return the parsed page and the problems found."""

    def export(*cells, context=None, metadata=None):
        book = notebook(*cells)
        book.metadata.update(metadata or {})
        problems = export_page(book, tmp_path / "01-page.html", context)
        return BeautifulSoup((tmp_path / "01-page.html").read_text(encoding="utf-8"), "html.parser"), problems

    return export


# ---------------------------------------------------------------------------------------------- offline


def everything():
    progress = [new_output("stream", name="stderr", text=f"\r{i}/3") for i in range(1, 4)]
    return [
        new_markdown_cell(
            "## Sums: $z_u = \\sum_i a_{ui}$\n\n[a source](https://example.org)\n\n| a | b |\n|---|---|\n| 1 | 2 |"
        ),
        new_code_cell("print(1)", outputs=[*progress, shown({"text/html": FRAME._repr_html_()})]),
        new_code_cell("plot", outputs=[shown({"image/svg+xml": SVG}, **{"image/svg+xml": {"alt": "A line"}})]),
    ]


def test_a_page_asks_no_network_for_anything(page):
    soup, problems = page(*everything())
    assert problems == []
    assert external_requests(str(soup)) == []
    assert not soup.find_all(["script", "link", "iframe"])
    assert len(str(soup)) < 40_000


@pytest.mark.parametrize(
    "markup",
    [
        '<img src="https://example.org/a.png" alt="">',
        '<img src="//example.org/a.png" alt="">',
        '<link rel="stylesheet" href="https://example.org/a.css">',
        "<style>@import 'a.css';</style>",
        "<style>p { background: url( 'http://example.org/a.png') }</style>",
        '<p style="background: url(https://example.org/a.png)">',
        "<script>fetch('https://example.org')</script>",
        '<iframe src="https://example.org"></iframe>',
    ],
)
def test_what_would_ask_the_network_is_found(page, markup):
    assert external_requests(markup)
    _, problems = page(new_code_cell("x", outputs=[shown({"text/html": markup})]))
    assert any("would load" in problem for problem in problems)


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_opens_the_page_without_a_network(page, tmp_path):
    asked = []
    for extra in ([], [new_markdown_cell('<img src="http://example.org/a.png" alt="a control">')]):
        page(*everything(), *extra)
        log = tmp_path / "net.json"
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        flags += " --disable-component-update --disable-sync --dump-dom --proxy-server=127.0.0.1:9"
        command = ["chromium", *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}"]
        address = (tmp_path / "01-page.html").as_uri()
        done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, check=True)
        assert "What does" in done.stdout
        asked.append("http://example.org" in log.read_text())
    assert asked == [False, True]


# ---------------------------------------------------------------------------------------------- formulas


def test_formulas_become_mathml_and_code_stays(page):
    source = (
        "Inline $a_i < b$, code `$x$`.\n\n$$\n\\begin{aligned} a &= b \\\\ &= c \\end{aligned}\n$$\n\n```\n$$y$$\n```"
    )
    soup, problems = page(new_markdown_cell(source))
    assert problems == []
    inline, block = soup.find_all("math")
    assert inline["display"] == "inline"
    assert block["display"] == "block"
    assert len(block.find_all("mtr")) == 2
    assert [code.get_text().strip() for code in soup.select("main code")] == ["$x$", "$$y$$"]
    assert "$" not in soup.select_one("main p:nth-of-type(1)").get_text()


def test_a_formula_that_is_not_understood_is_reported_and_shown_as_text(page):
    soup, problems = page(new_markdown_cell("Here $\\nonsense{x}$ it is."))
    assert len(problems) == 1
    assert "nonsense is not known" in problems[0]
    assert soup.find("math") is None
    assert soup.select_one("main code").get_text() == "\\nonsense{x}"


def test_upright_names_stay_words():
    markup, problem = mathml(r"\mathrm{softmax}_i(x)")
    assert problem is None
    assert "<mtext>softmax</mtext>" in markup
    assert "<math" in markdown_to_html("so $x$")


# ---------------------------------------------------------------------------------------------- structure


def test_the_page_is_titled_and_has_contents_with_working_links(page):
    cells = [new_markdown_cell(text) for text in ("## Data", "### Users & items", "## Data", "## Cost $x$")]
    soup, _ = page(*cells, context=PageContext(run_title="tiny on a CPU"))
    assert soup.html["lang"] == "en"
    assert soup.title.get_text() == "What does one step cost? · tiny on a CPU"
    assert soup.select_one("a.skip")["href"] == "#content"
    for contents in soup.select(".contents"):
        links = contents.select("a")
        assert [link["href"] for link in links] == ["#data", "#users-items", "#data-2", links[3]["href"]]
        assert all(soup.find(id=link["href"][1:]) for link in links)
        assert links[3].find("math")
    assert len(soup.select(".contents")) == 2
    identifiers = [element["id"] for element in soup.select("[id]")]
    assert len(identifiers) == len(set(identifiers))


def test_a_page_without_sections_has_no_contents(page):
    soup, _ = page()
    assert not soup.select(".contents, .contents-box")


def test_code_and_parameters_are_folded(page):
    parameters = new_code_cell(
        'dataset = "embedded"  # which data\nseed: int = 0  # seeds all', metadata={"tags": ["parameters"]}
    )
    injected = new_code_cell("dataset = '/home/me/tiktok'", metadata={"tags": ["injected-parameters"]})
    given = {"papermill": {"parameters": {"dataset": "/home/me/tiktok", "seed": 0}}}
    soup, _ = page(parameters, injected, new_code_cell("print('hello')"), metadata=given)
    (code,) = soup.select("details.code")
    assert not code.has_attr("open")
    assert code.summary.get_text() == "Show code, row 1"
    assert "hello" in code.pre.get_text()
    folded = soup.select_one("details.parameters")
    assert " ".join(folded.summary.get_text().split()) == "Parameters: dataset = 'tiktok'"  # the changed one alone
    rows = [[cell.get_text(" ", strip=True) for cell in row.select("th, td")] for row in folded.select("tbody tr")]
    assert rows == [["dataset", "'tiktok'", '"embedded"', "which data"], ["seed", "0", "", "seeds all"]]
    assert "/home/me" not in str(soup)
    assert "all by default" in page(parameters)[0].select_one(".parameters summary").get_text()


def test_consecutive_cells_that_show_nothing_are_one_row(page):
    silent = [new_code_cell(f"x{i} = {i}") for i in range(3)]
    shows = new_code_cell("show", outputs=[shown({"text/html": "<p>here</p>"})])
    soup, _ = page(*silent[:2], shows, silent[2], new_markdown_cell("## Next"), new_code_cell("last = 1"))
    rows = [row.get_text() for row in soup.select("details.code > summary")]
    assert rows == ["Show code (3 cells), row 1", "Show code, row 2", "Show code, row 3"]  # each has a name of its own
    sources = [[block.get_text().strip() for block in row.select("pre")] for row in soup.select("details.code")]
    assert sources == [["x0 = 0", "x1 = 1", "show"], ["x2 = 2"], ["last = 1"]]
    assert len(soup.select(".outputs p")) == 1


def test_a_bar_that_is_gone_leaves_no_trace_on_the_page(page):
    bar = new_code_cell("work", outputs=[shown({"text/plain": ""}, role="progress")] * 2)
    soup, _ = page(bar, new_code_cell("show", outputs=[shown({"text/html": "<p>here</p>"})]))
    assert [row.get_text() for row in soup.select("details.code > summary")] == ["Show code (2 cells), row 1"]
    assert not soup.select("pre.stream")


def test_words_of_this_collection_are_explained_where_they_are_first_used(page):
    cells = [new_markdown_cell("The `reference` is the reference, as shipped. Another reference."), new_code_cell("x")]
    soup, _ = page(*cells)
    links = soup.select("a.word")
    assert [link.get_text() for link in links] == ["reference", "as shipped"]
    assert [soup.find(id=link["href"][1:]).name for link in links] == ["dt", "dt"]
    assert not page(new_markdown_cell("No such word, but ops/reference.py:34."))[0].select(".words")


HOSTILE = (
    "<script>alert(1)</script> <img src=x onerror=alert(1)> [go](javascript:alert(1)) [d](data:text/html,x) "
    "![pixel](http://example.org/p.png) <data onclick=alert(1)>\n\n<div onclick=alert(1)>block</div>"
)


def harmful(soup) -> list[str]:
    """Scripts, event handlers, images and links with a scheme of their own, inside the content."""
    found = [tag.name for tag in soup.select("main script, main img")]
    found += [name for tag in soup.select("main *") for name in tag.attrs if name.startswith("on")]
    return found + [
        a["href"] for a in soup.select("main a[href]") if re.match(r"\s*(javascript|data|vbscript):", a["href"])
    ]


def test_what_came_from_data_or_records_is_shown_as_text(page):
    mark = '<data class="quantity" data-quantity="grcn.step" value="1e-05">1 ms</data>'
    output = shown({"text/markdown": f"{HOSTILE}\n\n{mark}"})
    soup, _ = page(new_code_cell("x", outputs=[output]), context=PageContext(answer=HOSTILE, failure=HOSTILE))
    assert harmful(soup) == []
    assert "<script>alert(1)</script>" in soup.select_one("section.answer").get_text()
    assert soup.select_one("data.quantity")["value"] == "1e-05"
    assert harmful(BeautifulSoup(f"<main>{HOSTILE}<a href='javascript:x'>y</a></main>", "html.parser")) == [
        "script",
        "img",
        "onerror",
        "onclick",
        "onclick",
        "javascript:x",
    ]  # the control


def test_progress_bars_leave_their_last_line(page):
    soup, _ = page(*everything())
    assert soup.select_one("pre.stderr").get_text() == "3/3"


def test_the_answer_stands_below_the_title_and_nowhere_else(page):
    output = shown({"text/html": "<p>It costs <strong>3 ms</strong>.</p>"}, role="answer")
    cells = [new_markdown_cell("## More"), new_code_cell("session.answer(...)", outputs=[output])]
    assert "It costs 3 ms." in page(*cells)[0].select_one(".outputs").get_text()
    soup, _ = page(*cells, context=PageContext(answer="It costs **3 ms**, $t = 3$."))
    assert soup.get_text().count("It costs") == 1
    answer = soup.select_one("section.answer")
    assert answer.strong.get_text() == "3 ms"
    assert answer.find_previous("h1")
    assert not answer.find_previous("h2")


def test_a_failed_page_is_marked_and_shows_the_failing_code(page):
    error = new_output("error", ename="ValueError", evalue="no", traceback=["\x1b[31mValueError\x1b[39m: no"])
    context = PageContext(failure="ValueError: no", failed_cell=2)
    soup, _ = page(new_code_cell("x = 1"), new_code_cell("raise", outputs=[error]), context=context)
    notice = soup.select_one(".notice.failed")
    assert "ValueError: no" in notice.get_text()
    assert soup.find(id=notice.a["href"][1:]).details.has_attr("open")
    assert "ValueError" in soup.select_one(".traceback").get_text()


# ---------------------------------------------------------------------------------------------- figures, tables


def test_images_carry_their_alternative_text_and_caption(page):
    png = shown({"image/png": PIXEL}, **{"image/png": {"alt": "A dot", "caption": "One dot."}})
    fallback = new_code_cell("y", outputs=[shown({"image/png": PIXEL})], metadata={"alt": "From the cell"})
    soup, problems = page(new_code_cell("x", outputs=[png]), fallback)
    assert problems == []
    assert [image["alt"] for image in soup.find_all("img")] == ["A dot", "From the cell"]
    assert soup.figcaption.get_text() == "One dot."


def test_an_image_without_alternative_text_is_reported(page):
    _, problems = page(new_code_cell("x", outputs=[shown({"image/png": PIXEL})]))
    assert problems == ["1 image(s) without alternative text (use show_figure)"]


def test_tables_have_scopes_and_a_box_that_scrolls(page):
    soup, _ = page(new_code_cell("x", outputs=[shown({"text/html": FRAME._repr_html_()})]))
    table = soup.select_one("main table")
    assert {header["scope"] for header in table.select("thead th")} == {"col"}
    assert {header["scope"] for header in table.select("tbody th")} == {"row"}
    assert table.find_parent(class_="scroll")["tabindex"] == "0"
    assert not soup.select("style[scoped]")


# ---------------------------------------------------------------------------------------------- the index


def page_state(name, state="done", **more):
    return {"name": name, "title": f"Why {name}?", "state": state, "seconds": 1.0, "file": f"{name}.html"} | more


@pytest.fixture
def run(tmp_path, page):
    """A run of two finished pages and one that failed."""
    folder = tmp_path / "night"
    pages = [page_state("00-start", "pending", file=None), page_state("01-data"), page_state("02-grcn")]
    pages.append(page_state("03-dragon", "failed", error="ValueError: <no>", cell=4))
    for name in ("01-data", "02-grcn", "03-dragon"):
        export_page(notebook(), folder / f"{name}.html", PageContext())
    content = {"title": "tiny", "parameters": {"dataset": "tiny"}, "state": "stopped", "seconds": 3.0, "pages": pages}
    write_record(folder / "records" / "run.json", "run", content)
    headline = {
        "quantity": "grcn.step",
        "digits": 3,
        "label": "GRCN step",
        "value": 12.345,
        "unit": "ms",
        "note": "median",
        "page": "02-grcn",
    }
    write_record(folder / "records" / "02-headline.json", "headline", [headline])
    write_record(folder / "records" / "03-headline.json", "headline", [headline | {"label": "DRAGON <step>"}])
    answer = {"question": "Why?", "answer": "Because $x$.", "page": "02-grcn"}
    write_record(folder / "records" / "02-answer.json", "answer", answer)
    return folder


def test_the_index_is_drawn_from_records(run):
    soup = BeautifulSoup(build_index(run).read_text(encoding="utf-8"), "html.parser")
    assert external_requests(str(soup)) == []
    cards = [card.get_text(" ", strip=True) for card in soup.select(".cards li")]
    assert cards == ["GRCN step 12.3 ms median", "DRAGON <step> 12.3 ms median"]
    assert [link["href"] for link in soup.select(".pages .question a")] == [
        "01-data.html",
        "02-grcn.html",
        "03-dragon.html",
    ]
    assert soup.select_one(".pages math")
    assert "stopped at code cell 4: ValueError: <no>" in soup.get_text()
    assert "stopped at a failure in 03-dragon" in soup.select_one(".notice").get_text()
    assert all((run / link["href"]).is_file() for link in soup.select("details a"))


def test_the_index_shows_what_came_from_records_as_text(run):
    answer = {"question": HOSTILE, "answer": HOSTILE, "page": "02-grcn"}
    write_record(run / "records" / "02-answer.json", "answer", answer)
    soup = BeautifulSoup(build_index(run).read_text(encoding="utf-8"), "html.parser")
    assert harmful(soup) == []
    assert "alert(1)" in soup.select_one(".pages").get_text()


def test_pages_link_to_neighbours_that_exist(run):
    link_pages(run)
    soup = BeautifulSoup((run / "02-grcn.html").read_text(encoding="utf-8"), "html.parser")
    for nav in soup.select("header nav, footer nav"):
        assert [link["href"] for link in nav.select("a")] == ["index.html", "01-data.html", "03-dragon.html"]
    (run / "03-dragon.html").unlink()
    link_pages(run)
    assert "03-dragon.html" not in (run / "02-grcn.html").read_text(encoding="utf-8")


def test_the_list_of_runs_skips_what_is_no_run(run):
    (run.parent / "notes").mkdir()
    broken = run.parent / "broken" / "records"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text("{")
    soup = BeautifulSoup(build_reports_index(run.parent).read_text(encoding="utf-8"), "html.parser")
    assert [link["href"] for link in soup.select("a[href$='index.html']")] == ["night/index.html"]
