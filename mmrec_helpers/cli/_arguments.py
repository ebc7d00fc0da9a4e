"""Arguments that several commands share."""

from __future__ import annotations

import argparse


def add_data_and_device(parser: argparse.ArgumentParser) -> None:
    """``--dataset``, ``--visual``, ``--textual``, ``--scale`` and ``--device``."""
    parser.add_argument("--dataset", default="embedded", help="a preset (see `data`), or a folder in MMRec's layout")
    parser.add_argument("--visual", default="", metavar="FILE", help="visual features (.npy) in that folder")
    parser.add_argument("--textual", default="", metavar="FILE", help="textual features (.npy) in that folder")
    parser.add_argument("--scale", type=float, default=1.0, help="shrink a preset: 0.1 for a tenth (default 1)")
    parser.add_argument("--device", default="auto", help="auto (the default: CUDA if there is one), cpu, cuda, cuda:1")
