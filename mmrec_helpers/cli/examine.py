"""``examine``: what a training step of a model costs and wastes, by source line: MMRec's models, or this project's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrec_helpers.cli._arguments import add_data_and_device, add_out, named_texts, source_of

if TYPE_CHECKING:
    import pandas as pd

SUMMARY = "Say what a training step of a model costs and which of it is waste, by source line"
EXAMPLES = """\
  python -m mmrec_helpers examine --mmrec ../MMRec --model FREEDOM --dataset baby --out examined
  python -m mmrec_helpers examine --mmrec ../MMRec --model all --dataset tiktok --scale 0.1 --out examined
  python -m mmrec_helpers examine --mmrec ../MMRec --model DRAGON --dataset ../MMRec/data/baby \\
      --visual image_feat.npy --textual text_feat.npy --set n_layers=1 --out examined
  python -m mmrec_helpers examine --model grcn --dataset embedded
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mmrec", default="", metavar="PATH", help="a checkout of MMRec; else this project's models")
    parser.add_argument("--model", default="", metavar="NAME", help="a model's name; of a checkout also all (default)")
    add_data_and_device(parser)
    parser.add_argument("--batch-size", type=int, default=2048, help="interactions per step (default 2048)")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--max-seconds", type=float, default=60.0, help="stop the rounds of a model after this")
    parser.add_argument(
        "--dead-seconds",
        type=float,
        default=300.0,
        help="of each of the two searches for dead work in a model, which is left out where it would take longer "
        "(default 300); 0: look for none",
    )
    parser.add_argument(
        "--training-steps",
        type=int,
        default=20,
        help="of the trainings, own and accelerated, that are compared with float64 (default 20, slow models 5); 0: "
        "none",
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings in place of MMRec's")
    add_out(parser, required=False)


def run(args: argparse.Namespace) -> int:
    from mmrec_helpers.config import InputError
    from mmrec_helpers.experiments.catalogue import PARTS, measure_part
    from mmrec_helpers.experiments.examine import checkout_table
    from mmrec_helpers.experiments.steps import MeasureOptions
    from mmrec_helpers.files import parse_literal

    if args.set and not args.mmrec:
        raise InputError(f"--set {' '.join(args.set)}: expected with --mmrec, whose settings it replaces")
    counts = {name: getattr(args, name) for name in ("seed", "batch_size", "repeats", "max_seconds")}
    options, part, source = MeasureOptions(device=args.device, **counts), PARTS["examine"], source_of(args)
    if args.out is not None:
        part.check_path(args.out)
    more: dict[str, Any] = {"model": args.model or ("all" if args.mmrec else "grcn"), "dead_seconds": args.dead_seconds}
    if args.mmrec:
        settings = {name: parse_literal(text) for name, text in named_texts(args.set, "--set").items()}
        more |= {"checkout": Path(args.mmrec), "mmrec_settings": settings, "training_steps": args.training_steps}
    models = measure_part(part, source.open(), options, args.out, source.settings, **more)["models"]
    print(_text(checkout_table(models)) if len(models) > 1 else _one(models[0]))
    if args.out is not None:
        print(f"\nrecord: {part.path(args.out)}")
    return 0


def _one(found: dict[str, Any]) -> str:
    """What was found in one model: its times, the most expensive lines, the waste with what to do."""
    import pandas as pd

    head = f"{found['model']}: {found['step_ms']:.1f} ms per step, {found['peak_bytes'] / 1e6:.0f} MB"
    head += f", {found['epoch_s']:.1f} s per epoch" if found["epoch_s"] else ""
    parts = [head, *(f"supplied for old code: {what}" for what in found["supplied"]), *found["notes"]]
    columns = {"phases": None, "modules": None, "operators": ["operator", "place", "phase", "calls", "ms", "share"]}
    for name, chosen in {**columns, "host": None}.items():
        parts.append(f"{name}:\n{_text(pd.DataFrame(found[name], columns=chosen).head(10))}")
    waste = pd.DataFrame(found["waste"])
    for row in waste.to_dict("records"):
        own = "" if pd.isna(row["ms"]) else f": {row['ms']:.2f} ms"
        if not pd.isna(row["saving_ms"]):
            quartiles = f"quartiles {row['saving_q1_ms']:.2f} to {row['saving_q3_ms']:.2f}"
            own += f"; a step without it takes {row['saving_ms']:.2f} ms less ({quartiles})"
        parts.append(
            f"{row['kind']} ({row['verdict']}) {row['what']}{own}\n"
            f"  {row['place']}  {row['source']}\n  {row['because']}\n  {row['advice']}"
        )
    return "\n\n".join(parts)


def _text(table: pd.DataFrame) -> str:
    return table.to_string(index=False, float_format="{:.3g}".format, na_rep="", max_colwidth=80)
