"""The words that this collection uses in a sense of its own: one list, explained on every page that uses them."""

import re

from bs4 import BeautifulSoup, NavigableString

# Word: how it is recognised in running text, and what it means.
WORDS: dict[str, tuple[str, str]] = {
    "reference": (
        r"(?<![/\w.])[Rr]eference\b(?![./])",
        "the model as MMRec runs it, layer by layer, in PyTorch Geometric",
    ),
    "fused": (r"\b[Ff]used\b", "the same numbers from kernels that write no array with a row per edge"),
    "as shipped": (r"\b[Aa]s shipped\b", "the routing loop of the public code, whose edges point from users to items"),
    "as in the paper": (
        r"\bas in the paper\b|\b[Ll]ive routing\b",
        'routing whose users gather from their items, `routing="live"` in code',
    ),
    "variant": (r"\b[Vv]ariants?\b", "one model with its options and backend, as `measure --list` names them"),
    "malloc trimming disabled": (
        r"\bmalloc trimming disabled\b",
        "the C library keeps freed memory, so that temporaries cost no page faults; times on a CPU are quoted so",
    ),
}


def words_as_markdown() -> str:
    """The list, for a notebook."""
    return "\n".join(f"- *{word}*: {meaning}" for word, (_, meaning) in WORDS.items())


def explain_words(soup: BeautifulSoup) -> None:
    """Link the first use of each word on a page, in prose, to its meaning at the page's end."""
    main, used = soup.select_one("main#content"), []
    if soup.find("h2", id="words"):  # the page that lists them all
        return
    prose = main.select(":scope > .prose > p, .answer p, blockquote p, .computed p, figcaption") if main else []
    for word, (pattern, _) in WORDS.items():
        if any(_link_first(soup, text, word, pattern) for block in prose for text in block.find_all(string=True)):
            used.append(word)
    if main and used:
        main.append(_section(soup, used))


def _link_first(soup: BeautifulSoup, text: NavigableString, word: str, pattern: str) -> bool:
    found = re.search(pattern, text) if text.find_parent(["a", "code", "math"]) is None else None
    if found:
        link = soup.new_tag("a", href=f"#word-{word.replace(' ', '-')}", attrs={"class": "word"})
        link.string = found.group()
        text.replace_with(text[: found.start()], link, text[found.end() :])
    return found is not None


def _section(soup: BeautifulSoup, used: list[str]) -> BeautifulSoup:
    rows = ""
    for word in used:
        meaning = re.sub("`(.+?)`", r"<code>\1</code>", WORDS[word][1])
        rows += f'<dt id="word-{word.replace(" ", "-")}">{word}</dt><dd>{meaning}</dd>'
    return BeautifulSoup(f'<section class="words" aria-label="Words"><dl>{rows}</dl></section>', "html.parser")
