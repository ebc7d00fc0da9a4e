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
  python -m mmrec_helpers report --run music4all-h200 --only 05- --dataset music4all --device cuda
  python -m mmrec_helpers report --only 02,04-06 -p epochs 20
"""
SHARED = {"dataset": "embedded", "visual": "", "textual": "", "device": "auto", "seed": 0, "scale": 1.0}
_MEASURING = ("batch_size", "repeats", "records")  # parameters that pages share: a run has one of each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_and_device(parser)
    parser.add_argument("--only", default="", metavar="NN,...", help="notebooks by number: 02,04 or 02-05 or 05-")
    parser.add_argument("--run", default="", metavar="NAME", help="the run's folder under reports/, or a path")
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
    from mmrec_helpers.pages.collection import check_parameters, find_notebooks, select

    notebooks = find_notebooks(args.notebooks)
    if args.list:
        _list(notebooks)
        return 0
    chosen = select(notebooks, args.only)
    parameters = _parameters(args)
    device = _check_data_and_device(args)
    folder = _run_folder(args, device)
    target = _where_to_build(folder, args, parameters)
    check_parameters(notebooks, parameters)
    for name in (name for name, _ in args.parameters if not any(name in notebook.defaults for notebook in chosen)):
        print(f"note: none of the chosen notebooks has the parameter {name}", file=sys.stderr)
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
    from mmrec_helpers.files import dataset_label
    from mmrec_helpers.pages.index import build_reports_index
    from mmrec_helpers.pages.runner import CellFailed, run_collection

    title = f"{dataset_label(args.dataset)} on {'a GPU' if device.type == 'cuda' else 'a CPU'}"
    title += f", scale {args.scale:g}" if args.scale != 1 else ""
    try:
        run_collection(chosen, target, parameters, collection=notebooks, title=title, device=device)
    except CellFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        print(f"finished pages: {_shown(target / 'index.html')}", file=sys.stderr)
        if target == folder:
            print(f"after mending it, go on with: {_command_to_go_on(args, folder, chosen, failure)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nfinished pages: {_shown(target / 'index.html')}", file=sys.stderr)
        raise
    if target != folder:
        _swap(target, folder)
    build_reports_index(folder.parent)
    print(_shown(folder / "index.html"))
    return 0


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
    return (Path(args.run) if any(mark in args.run for mark in "/\\") else reports_folder() / args.run).resolve()


def _where_to_build(folder: Path, args: argparse.Namespace, parameters: dict[str, Any]) -> Path:
    """``folder``, or a folder beside it when an existing run is to be replaced; refuses to mix or lose results."""
    from mmrec_helpers.config import InputError
    from mmrec_helpers.records.record import read_record

    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    earlier = folder / "records" / "run.json"
    if not earlier.is_file():
        raise InputError(f"{_shown(folder)} exists and is not a run: give another name with --run")
    if args.only and not args.overwrite:
        _check_same_run(read_record(earlier, "run")["content"]["parameters"], parameters, folder)
        return folder
    if not args.overwrite:
        raise InputError(
            f"the run {_shown(folder)} exists: give another name with --run, renew some of its pages with --only, "
            "or replace it with --overwrite"
        )
    beside = folder.with_name(f"{folder.name}.new")
    if beside.exists():
        shutil.rmtree(beside)  # what an earlier --overwrite left when it failed
    return beside


def _check_same_run(earlier: dict[str, Any], parameters: dict[str, Any], folder: Path) -> None:
    from mmrec_helpers.config import InputError
    from mmrec_helpers.files import without_folders

    now = without_folders(parameters)
    for name, default in (SHARED | dict.fromkeys(_MEASURING)).items():
        before, after = earlier.get(name, default), now.get(name, default)
        if before != after:
            raise InputError(f"the run {_shown(folder)} was made with {name} {before!r}, not {after!r}: give the same")


def _swap(new: Path, folder: Path) -> None:
    """Put ``new`` in the place of ``folder``; at every moment one of the two lies whole under one of the names."""
    old = folder.with_name(f"{folder.name}.old")
    os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old)


def _command_to_go_on(args: argparse.Namespace, folder: Path, chosen: list[Notebook], failure: Any) -> str:
    rest = [notebook.name[:2] for notebook in chosen]
    rest = rest[rest.index(failure.notebook[:2]) :]
    words = ["python", "-m", "mmrec_helpers", "report", "--run", args.run or folder.name, "--only", ",".join(rest)]
    for name, default in SHARED.items():
        value = getattr(args, name)
        words += [f"--{name}", str(value)] if value != default else []
    for pair in args.parameters:
        words += ["-p", *pair]
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
