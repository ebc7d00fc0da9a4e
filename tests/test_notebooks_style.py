"""The stored notebooks: without outputs, one question each, short cells, one documented parameters cell."""

import ast
import io
import tokenize
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 10


def complaints(notebook: nbformat.NotebookNode) -> list[str]:
    """What breaks the style of this collection, in words."""
    cells = notebook.cells
    first = cells[0] if cells else new_markdown_cell("")
    found = []
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        found.append("the first cell is not a title")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("no kernelspec python3: plain papermill could not run it")
    found += [f"metadata of {tool}" for tool in ("papermill", "widgets") if tool in notebook.metadata]
    code = [cell for cell in cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    found += [] if len(tagged) == 1 else [f"{len(tagged)} cells tagged parameters"]
    for cell in tagged:
        found += parameter_complaints(cell.source)
    for number, cell in enumerate(code, start=1):
        found += [f"code cell {number} {what}" for what in code_complaints(cell)]
    return found


def code_complaints(cell: nbformat.NotebookNode) -> list[str]:
    lines = [line for line in cell.source.splitlines() if line.strip()]
    tree = ast.parse(cell.source)
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    parameters = "parameters" in cell.metadata.get("tags", [])
    return [
        *(["is empty"] if not lines else []),
        *(["has outputs"] if cell.outputs else []),
        *(["has an execution count"] if cell.execution_count is not None else []),
        *([f"has {len(lines)} lines"] if len(lines) > LONGEST_CELL and not parameters else []),
        *(["defines a function or a class"] if any(isinstance(n, defined) for n in ast.walk(tree)) else []),
    ]


def parameter_complaints(source: str) -> list[str]:
    """Each line is ``name: type = literal  # help``, or without the type."""
    comments = {
        t.start[0] for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT
    }
    found = []
    for node in ast.parse(source).body:
        name = ast.unparse(node)
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            found.append(f"parameters: {name} is no assignment")
            continue
        try:
            ast.literal_eval(node.value)
        except ValueError:
            found.append(f"parameters: {name} is not a literal")
        if node.end_lineno not in comments:
            found.append(f"parameters: {name} has no help")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_style(path):
    assert complaints(nbformat.read(path, as_version=4)) == []


def good() -> nbformat.NotebookNode:
    parameters = new_code_cell('run = ""  # the folder\nseed: int = 0  # seeds all', metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell("# Why?\n\nBecause."), parameters, new_code_cell("total = 1 + 1\ntotal")]
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


def test_a_good_notebook_passes():
    assert complaints(good()) == []


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (lambda nb: nb.cells.pop(0), "the first cell is not a title"),
        (lambda nb: nb.cells.pop(1), "0 cells tagged parameters"),
        (lambda nb: nb.metadata.clear(), "no kernelspec python3: plain papermill could not run it"),
        (lambda nb: nb.metadata.update(papermill={}), "metadata of papermill"),
        (lambda nb: nb.cells[2].update(execution_count=3), "code cell 2 has an execution count"),
        (lambda nb: nb.cells[2].outputs.append(new_output("stream", text="2")), "code cell 2 has outputs"),
        (lambda nb: nb.cells[2].update(source="x = 1\n" * 11), "code cell 2 has 11 lines"),
        (lambda nb: nb.cells[2].update(source="def f():\n    return 1"), "code cell 2 defines a function or a class"),
        (lambda nb: nb.cells[2].update(source=""), "code cell 2 is empty"),
        (lambda nb: nb.cells[1].update(source="seed = 0"), "parameters: seed = 0 has no help"),
        (lambda nb: nb.cells[1].update(source="seed = 2 * 3  # help"), "parameters: seed = 2 * 3 is not a literal"),
        (lambda nb: nb.cells[1].update(source="import os  # help"), "parameters: import os is no assignment"),
    ],
)
def test_a_break_of_style_is_found(break_it, complaint):
    notebook = good()
    break_it(notebook)
    assert complaint in complaints(notebook)
