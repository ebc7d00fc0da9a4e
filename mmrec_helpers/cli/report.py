"""``report``: run the notebooks on a data set and leave HTML pages."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrec_helpers.cli._arguments import add_data_and_device, source_of

if TYPE_CHECKING:
    from mmrec_helpers.pages.collection import Notebook

SUMMARY = "Run the notebooks on a data set and leave HTML pages under reports/"
EXAMPLES = """\
  python -m mmrec_helpers report
  python -m mmrec_helpers report --dataset ../tiktok --visual image_feat.npy --textual audio_feat.npy
  python -m mmrec_helpers report --dataset music4all --device cuda --run music4all-h200
  python -m mmrec_helpers report --resume music4all-h200
  python -m mmrec_helpers report --only 02,04-06 -p epochs 20
"""
SHARED = {"dataset": "embedded", "visual": "", "textual": "", "device": "auto", "seed": 0, "scale": 1.0}
RUN_RECORD = Path("records") / "run.json"
_MEASURING = ("batch_size", "repeats", "records")  # parameters that pages share: a run has one of each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_and_device(parser)
    parser.add_argument("--only", default="", metavar="NN,...", help="notebooks by number: 02,04 or 02-05 or 05-")
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--run",
        default="",
        metavar="NAME",
        help="the run's folder under reports/, or a path; one that exists is updated",
    )
    way.add_argument("--resume", default="", metavar="RUN", help="make the pages that a run does not have yet")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the run of that name, once the new one is done"
    )
    parser.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("PARAMETER", "VALUE"),
        help="set a notebook parameter (repeatable); notebooks without it are left as they are",
    )
    parser.add_argument("--notebooks", default=None, metavar="FOLDER", help="run other notebooks than the checkout's")
    parser.add_argument("--list", action="store_true", help="list the notebooks and their parameters, and stop")


def run(args: argparse.Namespace) -> int:
    from mmrec_helpers.pages.collection import find_notebooks, select

    notebooks = find_notebooks(args.notebooks)
    if args.list:
        _list(notebooks)
        return 0
    earlier = _take_up(args) if args.resume else {"pages": []}
    done = {page["name"] for page in earlier["pages"] if page["state"] == "done"}
    chosen = [notebook for notebook in select(notebooks, args.only) if notebook.name not in done]
    parameters = _parameters(args)
    device = _check_data_and_device(args)
    folder = _run_folder(args, device)
    target = _where_to_build(folder, args, parameters)
    if args.resume and not chosen:
        print(f"nothing is left to do: {_shown(folder / 'index.html')}")
        return 0
    if target == folder and (folder / RUN_RECORD).is_file():
        pages = ", ".join(notebook.name[:2] for notebook in chosen)
        print(f"updating the run {_shown(folder)}: pages {pages} are made, the others stay", file=sys.stderr)
    return _run(args, notebooks, chosen, parameters, target, folder, device)


def _run(
    args: argparse.Namespace,
    notebooks: list[Notebook],
    chosen: list[Notebook],
    parameters: dict[str, Any],
    target: Path,
    folder: Path,
    device: Any,
) -> int:
    """Run the chosen notebooks into ``target``, which takes the place of ``folder`` when all went well."""
    from mmrec_helpers.files import dataset_label, only_writer
    from mmrec_helpers.pages.index import build_reports_index
    from mmrec_helpers.pages.runner import CellFailed, run_collection

    title = f"{dataset_label(args.dataset)} on {'a GPU' if device.type == 'cuda' else 'a CPU'}"
    title += f", scale {args.scale:g}" if args.scale != 1 else ""
    try:
        with only_writer(target):
            run_collection(chosen, target, parameters, collection=notebooks, title=title, device=device)
    except CellFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        print(f"pages so far: {_shown(target / 'index.html')}; after mending it, ", end="", file=sys.stderr)
        print(f"go on with: {_command_to_go_on(args, target)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted; go on with: {_command_to_go_on(args, target)}", file=sys.stderr)
        return 130
    if target != folder:
        _swap(target, folder)
    build_reports_index(folder.parent)
    print(_shown(folder / "index.html"))
    return 0


def _take_up(args: argparse.Namespace) -> dict[str, Any]:
    """Give ``args`` what the run to resume was made with, where the command line does not say; returns its record.

    Records know no folders, so a data set or records in a folder have to be named again.
    """
    from mmrec_helpers.config import InputError
    from mmrec_helpers.data import PRESETS
    from mmrec_helpers.records.record import read_record

    args.run = args.resume
    folder = _named_folder(args.run)
    _finish_swap(folder)
    if not (folder / RUN_RECORD).is_file():
        raise InputError(f"--resume {args.resume}: {_shown(folder)} is no run: expected one that `report` made")
    content = read_record(folder / RUN_RECORD, "run")["content"]
    given = dict(args.parameters)
    for name, value in content["parameters"].items():
        if name == "dataset" and args.dataset == SHARED["dataset"] and value not in PRESETS:
            raise InputError(f"--resume {args.resume}: it was made on the folder {value!r}: give it with --dataset")
        if name in SHARED and getattr(args, name) == SHARED[name]:
            setattr(args, name, value)
        elif name not in SHARED and name not in given and name != "records":
            args.parameters.append((name, str(value)))
    return content


def _parameters(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, where it differs from the defaults; a data set's folder as an absolute path."""
    from mmrec_helpers.config import InputError
    from mmrec_helpers.files import parse_literal

    parameters = {name: getattr(args, name) for name, default in SHARED.items() if getattr(args, name) != default}
    for name, value in args.parameters:
        if name in SHARED or name == "run":
            raise InputError(f"-p {name}: expected --{name} {value}")
        parameters[name] = parse_literal(value)
    if "dataset" in parameters:
        parameters["dataset"] = source_of(args).absolute().dataset
    return parameters


def _check_data_and_device(args: argparse.Namespace) -> Any:
    """Refuse at once what the first notebook would refuse; returns the device."""
    from mmrec_helpers.config import resolve_device

    device = resolve_device(args.device)
    source_of(args).check()
    return device


def _run_folder(args: argparse.Namespace, device: Any) -> Path:
    from mmrec_helpers.files import dataset_label, reports_folder

    if not args.run:
        time = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        return reports_folder() / f"{dataset_label(args.dataset)}-{device.type}-{time}"
    return _named_folder(args.run)


def _named_folder(name: str) -> Path:
    """The folder of a run: a path as it is given, a name below reports/."""
    from mmrec_helpers.files import reports_folder

    return (Path(name) if any(mark in name for mark in "/\\") else reports_folder() / name).resolve()


def _where_to_build(folder: Path, args: argparse.Namespace, parameters: dict[str, Any]) -> Path:
    """``folder``, or a folder beside it when an existing run is to be replaced; refuses to mix or lose results."""
    from mmrec_helpers.config import InputError
    from mmrec_helpers.files import is_vacant
    from mmrec_helpers.records.record import read_record

    _finish_swap(folder)
    if is_vacant(folder):
        return folder
    if not (folder / RUN_RECORD).is_file():
        raise InputError(f"{_shown(folder)} exists and is not a run: give another name with --run")
    if not args.overwrite:
        _check_same_run(read_record(folder / RUN_RECORD, "run")["content"]["parameters"], parameters, folder)
        return folder
    beside = folder.with_name(f"{folder.name}.new")
    if not is_vacant(beside) and not (beside / RUN_RECORD).is_file():
        raise InputError(f"{_shown(beside)} exists and is not a run: expected to build the new one there")
    shutil.rmtree(beside, ignore_errors=True)  # what an earlier --overwrite left when it failed
    return beside


def _check_same_run(earlier: dict[str, Any], parameters: dict[str, Any], folder: Path) -> None:
    from mmrec_helpers.config import InputError
    from mmrec_helpers.files import without_folders

    now = without_folders(parameters)
    for name, default in (SHARED | dict.fromkeys(_MEASURING)).items():
        before, after = earlier.get(name, default), now.get(name, default)
        if before != after:
            raise InputError(
                f"the run {_shown(folder)} was made with {name} {before!r}, not {after!r}: give the same, another name "
                "with --run, or --overwrite to replace it"
            )


def _swap(new: Path, folder: Path) -> None:
    """Put ``new`` in the place of ``folder``; at every moment one of the two lies whole under one of the names."""
    os.rename(folder, _replaced(folder))
    os.rename(new, folder)
    shutil.rmtree(_replaced(folder))


def _finish_swap(folder: Path) -> None:
    """What a kill within ``_swap`` left undone: the replaced run goes back where no run is in its place, or goes."""
    if not _replaced(folder).is_dir():
        return
    if folder.exists():
        shutil.rmtree(_replaced(folder))
    else:
        os.rename(_replaced(folder), folder)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _command_to_go_on(args: argparse.Namespace, folder: Path) -> str:
    """``report --resume``, with what the run's record does not keep."""
    from mmrec_helpers.data import PRESETS
    from mmrec_helpers.files import reports_folder

    name = folder.name if folder.parent == reports_folder() else str(folder)
    words = ["python", "-m", "mmrec_helpers", "report", "--resume", name]
    words += ["--dataset", args.dataset] if args.dataset not in PRESETS else []
    words += [word for pair in args.parameters if pair[0] == "records" for word in ("-p", *pair)]
    words += ["--only", args.only] if args.only else []
    words += ["--notebooks", args.notebooks] if args.notebooks else []
    return shlex.join(words)


def _shown(path: Path) -> str:
    """The path as seen from the working directory, if it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _list(notebooks: list[Notebook]) -> None:
    for notebook in notebooks:
        print(f"{notebook.name[:2]}  {notebook.title}")
        names = [f"{name}={value!r}" for name, value in notebook.defaults.items() if name not in (*SHARED, "run")]
        if names:
            print(f"    {', '.join(names)}")
