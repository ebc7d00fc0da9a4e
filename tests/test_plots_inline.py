"""Figures stand in the page itself: its text's and paper's colours, ids of their own, an alternative text."""

import io
import re

import matplotlib as mpl
import pytest
from bs4 import BeautifulSoup

from mmrec_helpers.pages import show_figure, show_svg
from mmrec_helpers.pages.display import _themed
from mmrec_helpers.plots import styled


def a_figure():
    figure_and_axes = styled(width=3, height=2)
    with figure_and_axes as (figure, axes):
        axes.plot([0, 1], [1, 2], "o-", label="a line")
        axes.barh([1], [2], hatch="///", facecolor="white", edgecolor="black")
        axes.legend()
        axes.set_title("one & two")
    return figure


@pytest.fixture
def shown(monkeypatch):
    found = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: found.append(data["text/html"]))
    return found


def ids(markup):
    return [element["id"] for element in BeautifulSoup(markup, "html.parser").find_all(id=True)]


def referred(markup):
    return set(re.findall(r"(?:href=\"|url\()#([\w-]+)", markup))


def test_two_figures_on_a_page_share_no_id_and_refer_to_their_own(shown):
    for alt in ("First.", "Second."):
        show_figure(a_figure(), alt)
    first, second = map(ids, shown)
    assert first
    assert not set(first) & set(second)
    for own, markup in zip((first, second), shown):
        assert set(own) == referred(markup)
        assert len(own) == len(set(own))


def test_matplotlibs_own_svg_would_clash_and_stay_black_on_dark_paper():
    raw = []
    for _ in range(2):
        buffer = io.StringIO()
        with mpl.rc_context({"svg.hashsalt": "one"}):
            a_figure().savefig(buffer, format="svg")
        raw.append(buffer.getvalue().partition("<!DOCTYPE")[2])
    assert set(ids(raw[0])) & set(ids(raw[1]))
    assert "currentColor" not in raw[0]
    assert "currentColor" in _themed(raw[0])
    assert "<style" in raw[0]
    assert "<style" not in _themed(raw[0])


def test_text_axes_and_paper_take_the_pages_colours_and_nothing_jumps(shown):
    show_figure(a_figure(), alt='A "line" <rises>.', caption="Below & more")
    page = BeautifulSoup(shown[0], "html.parser")
    assert page.svg["fill"] == "currentColor"
    assert not {"#000000", "#ffffff"} & set(re.findall(r"#\w{6}", shown[0]))
    assert "var(--paper" in shown[0]
    assert all(page.svg.get(name) for name in ("width", "height", "viewbox"))
    assert (page.svg["role"], page.svg["aria-label"]) == ("img", 'A "line" <rises>.')
    assert page.figcaption.get_text() == "Below & more"
    assert "one & two" in page.get_text()


def test_a_drawing_by_hand_is_named_as_well(shown):
    show_svg('<svg viewBox="0 0 1 1"><rect><title>a block</title></rect></svg>', "One block.")
    page = BeautifulSoup(shown[0], "html.parser")
    assert (page.svg["role"], page.svg["aria-label"], page.title.get_text()) == ("img", "One block.", "a block")
