"""``curves``: the same training run in two backends, and whether the losses are the same."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmrec_helpers.cli._arguments import add_data_and_device

SUMMARY = "Train each model in two backends from one seed, and compare losses and times"
EXAMPLES = """\
  python -m mmrec_helpers curves
  python -m mmrec_helpers curves --dataset ../tiktok --visual image_feat.npy --textual audio_feat.npy --out curves.json
  python -m mmrec_helpers curves --arms DRAGON --epochs 10 --out curves.json --add
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_and_device(parser)
    parser.add_argument("--arms", nargs="+", default=None, metavar="NAME", help="of GRCN as shipped, GRCN live, DRAGON")
    parser.add_argument("--backends", nargs=2, default=("reference", "fused"), metavar=("FIRST", "SECOND"))
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each run (default 5)")
    parser.add_argument("--batch-size", type=int, default=2048, help="interactions a step (default 2048)")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch and of the fused CPU backend")
    parser.add_argument("--seed", type=int, default=0, help="of data, parameters, order and negatives (default 0)")
    parser.add_argument("--out", default="", metavar="FILE", help="where to write the record (JSON)")
    parser.add_argument("--add", action="store_true", help="keep the other arms of the record that is there")


def run(args: argparse.Namespace) -> int:
    import torch

    from mmrec_helpers.config import check_at_least, resolve_device
    from mmrec_helpers.data import open_dataset
    from mmrec_helpers.experiments.same_curve import ARMS, same_curve
    from mmrec_helpers.records import write_record

    check_at_least("curves", 0, threads=args.threads)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    data = open_dataset(args.dataset, args.visual or None, args.textual or None, seed=args.seed, scale=args.scale)
    settings = {"epochs": args.epochs, "batch_size": args.batch_size, "backends": tuple(args.backends)}
    arms = _kept(args, data)
    for name in args.arms or ARMS:
        arms[name] = same_curve(data, name, **settings, seed=args.seed, device=device, say=_say)
        print(describe(arms[name]))
    if args.out:
        content = {"arms": list(arms.values())}
        path = write_record(
            args.out, "same_curve", content, settings=settings, data=data, device=device, seed=args.seed
        )
        print(f"record written to {path}")
    return 0


def _say(text: str) -> None:
    print(f"... {text}", flush=True)


def _kept(args: argparse.Namespace, data: Any) -> dict[str, dict[str, Any]]:
    """The arms of the record that is there, by name; it must be of the same data."""
    from mmrec_helpers.config import InputError
    from mmrec_helpers.records import read_record

    if not (args.add and args.out and Path(args.out).exists()):
        return {}
    record = read_record(args.out, "same_curve")
    if record["provenance"]["data"]["fingerprint"] != data.fingerprint:
        raise InputError(f"{args.out} is of other data than {data.name}: expected a record of the same, or no --add")
    return {arm["arm"]: arm for arm in record["content"]["arms"]}


def describe(arm: dict[str, Any]) -> str:
    """Two lines on one arm."""
    first, second = arm["runs"]
    verdict = "the same curve" if arm["same"] else "not the same curve"
    seconds = [sum(run["epoch_s"]) for run in arm["runs"].values()]
    times = f"{first} {seconds[0]:.1f} s, {second} {seconds[1]:.1f} s"
    return (
        f"{arm['arm']}: {verdict}: losses of {arm['epochs']} epochs differ by at most "
        f"{max(arm['loss_differences']):.1e} (the same: {arm['rounding']:g})\n"
        f"  {times}; {arm['time_ratio']:.1f} times after the first epoch"
    )
