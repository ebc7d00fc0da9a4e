"""Files that are written whole or not at all."""

import subprocess
import sys

import pytest

from mmrec_helpers.files import NotWritten, atomic_file, write_text


def test_a_file_is_written_whole_into_a_new_folder(tmp_path):
    path = write_text(tmp_path / "deep" / "a.txt", "ä\n")
    assert path.read_bytes() == b"\xc3\xa4\n"
    with atomic_file(path, "wb") as file:
        file.write(b"\x00")
        assert path.read_bytes() == b"\xc3\xa4\n"  # the old content until the block ends
    assert path.read_bytes() == b"\x00"
    assert list(path.parent.iterdir()) == [path]


def _write_half(path, error):
    with atomic_file(path, "w") as file:
        file.write("half")
        raise error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a bug"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = write_text(tmp_path / "a.txt", "old")
    expected, message = (NotWritten, r"a\.txt: No space") if isinstance(error, OSError) else (type(error), None)
    with pytest.raises(expected, match=message):
        _write_half(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    write_text(tmp_path / "a.txt", "")
    with pytest.raises(NotWritten, match=r"cannot write .*b\.txt"):
        write_text(tmp_path / "a.txt" / "b.txt", "")


WITHOUT_FCNTL = """
import sys, types
import mmrec_helpers.config  # and with it what would take the module below for Windows
locked = []
def locking(fd, mode, count):
    locked.append(fd)
    if len(locked) > 2:
        raise PermissionError(13, "locked by another process")
sys.platform = "win32"
sys.modules |= {"msvcrt": types.SimpleNamespace(locking=locking, LK_NBLCK=2)}
from mmrec_helpers.files import NotWritten, only_writer, write_text
with only_writer("out"):
    write_text("out/a.txt", "whole")
try:
    with only_writer("out"): pass
except NotWritten as error:
    print(error)
"""


def test_locks_where_there_is_no_fcntl_as_on_windows(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FCNTL], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("cannot write out: another process is writing it")
    assert (tmp_path / "out" / "a.txt").read_text() == "whole"
