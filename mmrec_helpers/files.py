"""Where reports lie, and files that are written whole or not at all."""

import ast
import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

LONGEST_LITERAL = 10_000  # characters; the parser may crash on much longer ones


class NotWritten(OSError):
    """A file could not be written. The message names the file and the reason; what was there before is unchanged."""


def project_root() -> Path | None:
    """The checkout that this package runs from, or None when it is installed without one."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir() else None


def reports_folder() -> Path:
    """``reports/`` of the checkout; without a checkout, of the working directory."""
    return (project_root() or Path.cwd()) / "reports"


def dataset_label(dataset: str) -> str:
    """A data set's short name, fit for a folder name: the preset, or the last part of the folder's path."""
    name = re.split(r"[\\/]", str(dataset).rstrip("\\/"))[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "data"


def parse_literal(text: str) -> Any:
    """A value given as text: a Python literal (true, false, none and null in any case too), else the text itself.

    What a record could not hold is text too: sets, bytes, keys that are lists or tuples, numbers beyond all bounds,
    escapes that are no characters, more than 10,000 characters or some dozens of brackets in brackets.
    """
    named = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in named:
        return named[text.lower()]
    try:
        value = ast.literal_eval(text) if len(text) <= LONGEST_LITERAL else text
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        return value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def without_folders(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with paths shown by their last part: a path says more about a machine than a record should."""
    return {
        name: dataset_label(value) if isinstance(value, str) and ("/" in value or "\\" in value) else value
        for name, value in parameters.items()
    }


@contextlib.contextmanager
def atomic_file(path: str | Path, mode: str) -> Iterator[IO[Any]]:
    """A file that is written whole or not at all: ``with atomic_file("run.json", "w") as file: file.write("{}")``.

    mode  "w" (UTF-8, lines end in "\\n") or "wb"

    Yields a file object on a new file beside ``path`` (its folder is made), which takes the place of ``path`` when the
    block ends. If the block raises, nothing is left of it and ``path`` stays as it was. An OSError becomes NotWritten.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    as_text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, **as_text) as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise NotWritten(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a UTF-8 file by ``atomic_file``; returns its path."""
    with atomic_file(path, "w") as file:
        file.write(text)
    return Path(path)
