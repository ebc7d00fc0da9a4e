"""Which notebooks a run takes, in which order, and which parameters each is given."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from papermill.models import Parameter
from papermill.translators import PythonTranslator

from mmrec_helpers.config import InputError
from mmrec_helpers.files import parse_literal, project_root

_TYPES = {bool: "True or False", int: "an integer", float: "a number", str: "text"}


@dataclass(frozen=True)
class Notebook:
    """A notebook of the collection and the defaults of its parameters, as the ``parameters`` cell has them."""

    path: Path
    title: str
    defaults: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem


def find_notebooks(folder: str | Path | None = None) -> list[Notebook]:
    """The numbered notebooks of ``folder`` (default: of the checkout) in reading order; InputError if none."""
    if folder is None:
        root = project_root()
        if root is None:
            raise InputError("no notebooks here: mmrec_helpers is installed without its checkout; give their folder")
        folder = root / "notebooks"
    paths = sorted(path for path in Path(folder).glob("*.ipynb") if re.match(r"\d\d-", path.name))
    if not paths:
        raise InputError(f"no notebooks in {folder}: expected files named like 01-data.ipynb")
    return [read_notebook(path) for path in paths]


def read_notebook(path: Path) -> Notebook:
    """Read title and parameters; raises InputError when the file is not a notebook."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, nbformat.reader.NotJSONError, nbformat.ValidationError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a notebook ({error})") from error
    defaults = {parameter.name: parse_literal(parameter.default) for parameter in notebook_parameters(notebook)}
    return Notebook(path, notebook_title(notebook) or path.stem, defaults)


def notebook_title(notebook: NotebookNode) -> str:
    """The text of the first level-one heading; "" if there is none."""
    for cell in notebook.cells:
        found = re.search(r"^#\s+(.+?)\s*#*$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None
        if found:
            return re.sub(r"[*_`$]", "", found[1])
    return ""


def notebook_parameters(notebook: NotebookNode) -> list[Parameter]:
    """name, default (as source), type and help of each parameter, as papermill reads the ``parameters`` cell."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return PythonTranslator.inspect(cells[0]) if cells else []


def run_order(notebooks: Sequence[Notebook]) -> list[Notebook]:
    """Ascending by name, but ``00-...`` last: it reads what the others record."""
    return sorted(notebooks, key=lambda notebook: (notebook.name.startswith("00"), notebook.name))


def select(notebooks: Sequence[Notebook], only: str) -> list[Notebook]:
    """The notebooks that ``only`` names, such as ``"02,04"``, ``"02-05"`` or ``"05-"`` (from there on); all for ""."""
    order = run_order(notebooks)
    numbers = [notebook.name[:2] for notebook in order]
    chosen: set[int] = set()
    for part in filter(None, (part.strip() for part in only.split(","))):
        match = re.fullmatch(r"(\d{1,2})(-)?(\d{1,2})?", part)
        ends = [end.zfill(2) for end in (match[1], match[3]) if end] if match else []
        if not ends or any(end not in numbers for end in ends):
            raise InputError(f"--only {part!r}: expected numbers of notebooks, or ranges of them: {', '.join(numbers)}")
        first = numbers.index(ends[0])
        last = numbers.index(ends[1]) if len(ends) == 2 else len(numbers) - 1 if match and match[2] else first
        chosen |= set(range(first, last + 1))
    return [notebook for i, notebook in enumerate(order) if i in chosen] if only.strip() else order


def check_parameters(notebooks: Sequence[Notebook], parameters: Mapping[str, Any]) -> None:
    """Raise an InputError for a parameter that none of ``notebooks`` has, or whose type differs from its default's."""
    known = {name: default for notebook in notebooks for name, default in notebook.defaults.items()}
    for name, value in parameters.items():
        if name not in known:
            raise InputError(
                f"unknown parameter {name!r}: the notebooks {', '.join(n.name[:2] for n in notebooks)} have "
                f"{', '.join(sorted(known)) or 'none'}"
            )
        expected = type(known[name])
        fits = isinstance(value, expected) or (expected is float and isinstance(value, int))
        if expected in _TYPES and (not fits or (isinstance(value, bool) and expected is not bool)):
            raise InputError(f"parameter {name} is {value!r}: expected {_TYPES[expected]}, like {known[name]!r}")
