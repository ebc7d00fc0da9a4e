"""Where reports lie; what may be written where; files written whole or not at all, by one process at a time."""

import ast
import contextlib
import errno
import json
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from mmrec_helpers.config import InputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LONGEST_LITERAL = 10_000  # characters; the parser may crash on much longer ones
_LEFTOVER = re.compile(r"\..+\.(?:[0-9a-f]{32}\.tmp|lock)")  # what a killed process may leave of the two writers below


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


def check_file(path: str | os.PathLike[str], what: str, is_ours: Callable[[Path], bool]) -> Path:
    """The path, if a file can be written there without loss: asked before the work begins whose result goes there.

    what     the file will be, for the messages: ``"checkpoint"``
    is_ours  whether a file that is there already is one of those, and so may be replaced

    Raises InputError for an empty path, a folder, and a file that is not ours; NotWritten as ``check_folder`` does.

        check_file("epochs.csv", "table of epochs", lambda path: path.read_text().startswith("model,"))
    """
    if not str(path):
        raise InputError(f"{what}: the path is empty: expected a file name")
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{what} {path} is a folder: expected a file name")
    if path.exists() and not (path.is_file() and is_ours(path)):
        raise InputError(f"{path} exists and is no {what}: it is left as it is; give another name")
    check_folder(path.parent)
    return path


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, if files can be written there; it need not exist yet and is not made. Raises InputError for an empty
    path, NotWritten for a place under a file, a read-only or a full disk, and missing permission."""
    if not str(folder):
        raise InputError("the folder's path is empty: expected a folder")
    folder = Path(folder)
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        raise NotWritten(f"cannot write to {folder}: {error.strerror or error}") from error
    return folder


def is_vacant(folder: Path, besides: Collection[str] = ()) -> bool:
    """Whether there is no such file or folder, or a folder without files but those that a killed writer left behind
    (and those named ``besides``)."""
    if not folder.is_dir():
        return not folder.exists()
    files = (path.name for path in folder.rglob("*") if not path.is_dir())
    return all(name in besides or _LEFTOVER.fullmatch(name) for name in files)


@contextlib.contextmanager
def only_writer(folder: str | Path, name: str = "") -> Iterator[None]:
    """Keep other processes from writing a folder, or the file ``name`` in it, while the block runs.

    Raises NotWritten when another process is at it. The lock is the operating system's, on ``.NAME.lock`` in the folder
    (which is made): it ends with the process, however that ends. A folder that stays empty is removed again.

        with only_writer("trained/records", "training-grcn.json"): ...
    """
    folder = Path(folder)
    lock = folder / f".{name or 'folder'}.lock"
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _lock_file(lock)
    except OSError as error:
        raise NotWritten(f"cannot write to {folder}: {error.strerror or error}") from error
    if file is None:
        raise NotWritten(
            f"cannot write {folder / name}: another process is writing it; wait until it ends, or give another place"
        )
    try:
        yield
    finally:
        if sys.platform == "win32":
            file.close()  # an open file cannot be removed on Windows
        with contextlib.suppress(OSError):
            lock.unlink()
        file.close()
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _lock_file(path: Path) -> IO[bytes] | None:
    """The open, locked file; None if another process has it locked."""
    while True:
        file = open(path, "ab")  # noqa: SIM115
        if _lock(file) is False:
            file.close()
            return None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # its last holder has removed it meanwhile


def _lock(file: IO[Any]) -> bool | None:
    """Whether this open file could be locked; None where the file system has no locks."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK) else None
    return True


@contextlib.contextmanager
def atomic_file(path: str | Path, mode: str) -> Iterator[IO[Any]]:
    """A file that is written whole or not at all: ``with atomic_file("run.json", "w") as file: file.write("{}")``.

    mode  "w" (UTF-8, lines end in "\\n") or "wb"

    Yields a file object on a new file beside ``path`` (its folder is made), which takes the place of ``path`` when the
    block ends. If the block raises, nothing is left of it and ``path`` stays as it was. An OSError becomes NotWritten.
    What killed processes left of such files in the folder is removed.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _new_temporary(path, mode) as file:
            temporary = Path(file.name)
            _remove_leftovers(path.parent)
            yield file
            file.flush()
            if sys.platform == "win32":
                file.close()  # an open file cannot be renamed on Windows
            os.replace(temporary, path)
    except OSError as error:
        raise NotWritten(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _new_temporary(path: Path, mode: str) -> IO[Any]:
    """A new file beside ``path``, locked so that it is not taken for a leftover."""
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    while True:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        file = open(temporary, mode, encoding=encoding, newline=newline)  # noqa: SIM115
        if _lock(file) is not False and temporary.exists():
            return file
        file.close()  # another process took it for one before it was locked


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in a folder that no living process holds locked."""
    if sys.platform == "win32":
        return
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if _LEFTOVER.fullmatch(path.name):
                with open(path, "rb") as file:
                    if _lock(file):
                        path.unlink()


def write_text(path: str | Path, text: str) -> Path:
    """Write a UTF-8 file by ``atomic_file``; returns its path."""
    with atomic_file(path, "w") as file:
        file.write(text)
    return Path(path)
