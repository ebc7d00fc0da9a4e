"""The command line. Each command is a module here with SUMMARY, EXAMPLES, ``add_arguments`` and ``run``.

A command imports what is heavy inside ``run``, so that ``--help`` answers at once.
"""

import argparse
import atexit
import importlib
import os
import shlex
import shutil
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

# As --help lists those that have a module here; others come after them.
ORDER = ("report", "measure", "examine", "train", "study", "sweep", "log", "data")
RENAMED = {"profile": "measure steps epoch", "bench": "measure steps backends", "curves": "measure same-curve"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, 1 for a failure, 2 for bad input, 130 after Ctrl-C."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        _ensure_home()
        return _run(given)
    except KeyboardInterrupt as stop:
        _let_go(stop)
        print(f"\ninterrupted; go on with: python -m mmrec_helpers {shlex.join(given)}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output went away, as in `... | head`
        sys.stderr.close()
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("mmrec_helpers"):
            raise
        wanted = f"`{given[0]}` needs {error.name}, which is not installed"
        print(
            f"error: {wanted}: pip install 'mmrec-helpers[notebooks]' (in a checkout: -e '.[notebooks]')",
            file=sys.stderr,
        )
        return 2
    except (MemoryError, RuntimeError, ValueError, OSError) as error:
        return _report(error)


def _let_go(error: BaseException | None) -> None:
    """Delete what an interrupted command had under way; what is half made would say so with a traceback later."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    sys.unraisablehook = hook


def _ensure_home() -> None:
    """Give Jupyter and IPython, which ask for one, a home for the time of the command where the user has none."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _run(given: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mmrec_helpers",
        description="Measure where the epochs of MMRec's models go, and make them fast with the same results.",
        epilog="`python -m mmrec_helpers COMMAND --help` tells more about each.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in available_commands():
        module = importlib.import_module(f"mmrec_helpers.cli.{name}")
        command = commands.add_parser(
            name,
            help=module.SUMMARY[0].lower() + module.SUMMARY[1:],
            description=module.SUMMARY + ".",
            epilog="examples:\n" + module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run_command=module.run)
    if given[:1] and given[0] in RENAMED:
        now = f"python -m mmrec_helpers {RENAMED[given[0]]} --out FOLDER"
        print(f"error: {given[0]} is now `{now}` (see `measure --help`)", file=sys.stderr)
        return 2
    chosen = parser.parse_args(given)
    return chosen.run_command(chosen) or 0


def available_commands() -> list[str]:
    """The commands: the modules of this folder."""
    names = {path.stem for path in Path(__file__).parent.glob("[a-z]*.py")}
    return [name for name in ORDER if name in names] + sorted(names - set(ORDER))


def _report(error: Exception) -> int:
    """Say in one line what errors that are expected say; raise anything else on, with its traceback."""
    from mmrec_helpers.config import InputError, out_of_memory
    from mmrec_helpers.files import NotWritten
    from mmrec_helpers.training.step import TrainingError

    said = str(error) if isinstance(error, (InputError, NotWritten, TrainingError)) else out_of_memory(error)
    if said is None:
        raise error
    print(f"error: {said}", file=sys.stderr)
    return 2 if isinstance(error, InputError) else 1
