"""``sweep``: models of an MMRec checkout over a grid of settings, with paired seeds; goes on where it stopped."""

import argparse
from typing import Any

from mmrec_helpers.cli._arguments import add_data_and_device, add_engine, named_texts, source_of

SUMMARY = "Train models of an MMRec checkout over a grid of settings, by MMRec's own trainer, with paired seeds"
EXAMPLES = """\
  python -m mmrec_helpers sweep --mmrec ../MMRec --model GRCN LightGCN --dataset baby --scale 0.1 \\
      --grid learning_rate=1e-3,1e-4 reg_weight=0.1,0.01 --seeds 3 --set epochs=50 --jobs 2 --out swept
  python -m mmrec_helpers sweep --mmrec ../MMRec --model FREEDOM --dataset ../MMRec/data/baby \\
      --visual image_feat.npy --textual text_feat.npy --scheduler tcp://host:8786 --out swept
  python -m mmrec_helpers sweep --summary --out swept

Without --grid the lists of MMRec's own settings files are the grid. Finished runs are kept: the same command goes on
where it stopped, also with more values. Each run's log, in MMRec's own format, is in FOLDER/logs.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mmrec", default="", metavar="PATH", help="the checkout of MMRec, or of a fork")
    parser.add_argument("--model", nargs="+", default=[], metavar="NAME", help="models of it")
    add_data_and_device(parser, seeded="generated data; the runs have MMRec's seed 999, then 1000, ...")
    grid = "values to try, in place of MMRec's own lists; a list as a value in brackets"
    parser.add_argument("--grid", nargs="+", default=None, metavar="NAME=VALUE,VALUE", help=grid)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings in place of MMRec's")
    parser.add_argument("--seeds", type=int, default=5, help="paired runs per model at its best point (default 5)")
    parser.add_argument("--plain", action="store_true", help="train the models as they are, not accelerated")
    add_engine(parser)
    parser.add_argument("--summary", action="store_true", help="train nothing, summarise the finished runs in --out")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the records go; finished runs are kept")


def run(args: argparse.Namespace) -> int:
    from mmrec_helpers.experiments.accuracy.runs import run_study, write_summary
    from mmrec_helpers.experiments.sweep import sweep_summary
    from mmrec_helpers.files import check_folder, only_writer
    from mmrec_helpers.progress import TerminalBar, watch
    from mmrec_helpers.records import check_record_path

    check_record_path(check_folder(args.out) / "records" / "sweep.json", "sweep")
    if not args.summary:
        plan, payload = _asked(args)
        with only_writer(args.out), watch(TerminalBar("sweep")):
            run_study(payload, plan, args.out, device=args.device, jobs=args.jobs, scheduler=args.scheduler)
    print(write_summary(args.out, "sweep", "sweep", sweep_summary))
    return 0


def _asked(args: argparse.Namespace) -> tuple[Any, Any]:
    """The plan, and what its runs need, checked."""
    from mmrec_helpers.config import InputError
    from mmrec_helpers.experiments.cluster import check_where
    from mmrec_helpers.experiments.sweep import make_payload, plan_sweep
    from mmrec_helpers.files import parse_literal

    if not args.mmrec or not args.model:
        raise InputError("sweep: --mmrec and --model are missing: expected a checkout of MMRec, and models of it")
    check_where(args.jobs, args.scheduler)
    source = source_of(args)
    values = {name: _values(text) for name, text in named_texts(args.grid or [], "--grid").items()}
    settings = {name: parse_literal(text) for name, text in named_texts(args.set, "--set").items()}
    options = {"seeds": args.seeds, "accelerated": not args.plain}
    plan = plan_sweep(args.mmrec, args.model, source.label, values or None, settings, **options)
    return plan, make_payload(args.mmrec, source, plan.variants)


def _values(text: str) -> list[Any]:
    """``1e-3,1e-4`` as two numbers, ``[64,64],[32]`` as two lists, ``add,mean`` as two words."""
    from mmrec_helpers.files import parse_literal

    values = parse_literal(f"[{text}]")
    return values if isinstance(values, list) else [parse_literal(part) for part in text.split(",") if part]
