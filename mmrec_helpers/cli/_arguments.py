"""Arguments that several commands share; they mean the same in each."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmrec_helpers.data import DataSource


def add_data_and_device(parser: argparse.ArgumentParser, seeded: str = "data, parameters, order and negatives") -> None:
    """``--dataset``, ``--visual``, ``--textual``, ``--scale``, ``--device`` and ``--seed`` (of what: seeded)."""
    parser.add_argument(
        "--dataset",
        default="embedded",
        help="a preset, which is generated data (see `data`), or a folder in MMRec's layout",
    )
    parser.add_argument("--visual", default="", metavar="FILE", help="visual features (.npy) in that folder")
    parser.add_argument("--textual", default="", metavar="FILE", help="textual features (.npy) in that folder")
    parser.add_argument("--scale", type=float, default=1.0, help="shrink a preset: 0.1 for a tenth (default 1)")
    parser.add_argument("--device", default="auto", help="auto (the default: CUDA if there is one), cpu, cuda, cuda:1")
    parser.add_argument("--seed", type=int, default=0, help=f"of {seeded} (default 0)")


def add_training(parser: argparse.ArgumentParser, epochs: int) -> None:
    """``--batch-size``, ``--epochs``, ``--patience`` and ``--backend``."""
    parser.add_argument("--backend", default="auto", help="auto, reference, sparse or fused (default auto)")
    parser.add_argument("--epochs", type=int, default=epochs, help=f"most epochs of a run (default {epochs})")
    parser.add_argument("--batch-size", type=int, default=2048, help="interactions per step (default 2048)")
    parser.add_argument("--patience", type=int, default=20, help="stop after so many validations without a better one")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """``--jobs`` and ``--scheduler``."""
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side on this machine (default 1)")
    parser.add_argument(
        "--scheduler", default="", metavar="ADDRESS", help="a dask scheduler whose workers train, as tcp://host:8786"
    )


def add_out(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """``--out``: always a folder, whose ``records/`` takes the records."""
    parser.add_argument("--out", required=required, metavar="FOLDER", help="where the records go: FOLDER/records")


def source_of(args: argparse.Namespace) -> DataSource:
    """The data set that the arguments of ``add_data_and_device`` name."""
    from mmrec_helpers.data import DataSource

    return DataSource(args.dataset, args.visual, args.textual, scale=args.scale, seed=args.seed)


def named_texts(given: list[str], flag: str) -> dict[str, str]:
    """``["n_layers=2"]`` as ``{"n_layers": "2"}``; InputError for what has no name or no equals sign."""
    from mmrec_helpers.config import InputError

    for text in given:
        if not text.partition("=")[0] or "=" not in text:
            raise InputError(f"{flag} {text}: expected NAME=VALUE, as in n_layers=2")
    return {name: value for name, _, value in (text.partition("=") for text in given)}
