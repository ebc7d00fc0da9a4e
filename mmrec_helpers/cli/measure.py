"""``measure``: what the notebooks measure, unattended, one record as soon as each part is done."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmrec_helpers.cli._arguments import add_data_and_device

SUMMARY = "Measure what the notebooks measure without running them, one record a part, for a machine with a GPU"
EXAMPLES = """\
  python -m mmrec_helpers measure --list
  python -m mmrec_helpers measure --dataset music4all --device cuda --batch-size 4096 --out reports/music4all-gpu
  python -m mmrec_helpers measure --dataset music4all --device cuda --parts epoch bench --seconds 540 --out measured
  python -m mmrec_helpers measure --dataset music4all --scale 0.02 --device cpu --repeats 3 --out rehearsal

then, on any machine, the pages of such a folder:
  python -m mmrec_helpers report --dataset music4all --device cpu -p records measured --only 04-
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_and_device(parser)
    parser.add_argument("--batch-size", type=int, default=2048, help="interactions a step (default 2048)")
    parser.add_argument("--repeats", type=int, default=9, help="interleaved rounds of each group (default 9)")
    parser.add_argument("--seed", type=int, default=0, help="of data, parameters and batches (default 0)")
    parser.add_argument("--part-seconds", type=float, default=30.0, help="for the rounds of each group (default 30)")
    parser.add_argument("--seconds", type=float, default=None, help="start no part after this (default: no limit)")
    parser.add_argument("--parts", nargs="+", default=None, metavar="PART", help="some of the parts (default: all)")
    parser.add_argument("--again", action="store_true", help="measure parts anew whose record is there already")
    parser.add_argument("--list", action="store_true", help="list the parts, and stop")
    parser.add_argument("--out", default="", metavar="FOLDER", help="where records/ and traces/ go")


def run(args: argparse.Namespace) -> int:
    from mmrec_helpers.config import InputError, choose, resolve_device
    from mmrec_helpers.data import open_dataset
    from mmrec_helpers.experiments.catalogue import ON_CUDA_ALONE, PARTS, Task, measure_parts
    from mmrec_helpers.files import dataset_label

    if args.list:
        print("\n".join(f"{name:16}{part.about} (records/{part.record}.json)" for name, part in PARTS.items()))
        return 0
    if not args.out:
        raise InputError("measure: --out is missing: expected the folder that records/ goes into")
    device = resolve_device(args.device)
    wanted = [choose("part", name, PARTS) for name in args.parts or PARTS]
    if device.type != "cuda" and not args.parts:
        wanted = [name for name in wanted if name not in ON_CUDA_ALONE]
    data = open_dataset(args.dataset, args.visual or None, args.textual or None, seed=args.seed, scale=args.scale)
    settings = {"dataset": dataset_label(args.dataset), "scale": args.scale}
    counts = {"batch_size": args.batch_size, "repeats": args.repeats, "seed": args.seed, "seconds": args.part_seconds}
    task = Task(data, device, Path(args.out), settings=settings, **counts)
    print(f"{data.name} on {device}: {', '.join(wanted)}", flush=True)
    outcomes = []
    for outcome in measure_parts(wanted, task, budget_s=args.seconds, again=args.again):
        outcomes.append(outcome)
        print(f"{outcome.part}: {outcome.state}, {outcome.seconds:.1f} s {outcome.error}".rstrip(), flush=True)
    return 1 if any(outcome.state == "failed" for outcome in outcomes) else 0
