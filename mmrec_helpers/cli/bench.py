"""``bench``: the backends against each other, and against MMRec's own objects."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from mmrec_helpers.cli._arguments import add_data_and_device

SUMMARY = "Time the backends, and MMRec's own models, against each other in one interleaved run"
EXAMPLES = """\
  python -m mmrec_helpers bench
  python -m mmrec_helpers bench --dataset baby --threads 2 --out bench.json
  python -m mmrec_helpers bench --dataset music4all --device cuda --max-seconds 60
  python -m mmrec_helpers bench --dataset music4all --backends reference fused --models grcn
  python -m mmrec_helpers bench --dataset baby --mmrec ../MMRec
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_and_device(parser)
    parser.add_argument(
        "--backends", nargs="+", default=None, metavar="NAME", help="of reference, sparse, fused (default: all)"
    )
    parser.add_argument(
        "--models", nargs="+", default=None, metavar="NAME", help="of grcn, dragon: whose steps to time (default: both)"
    )
    parser.add_argument(
        "--groups", nargs="+", default=None, metavar="NAME", help="of step, attention, evaluation (default: all)"
    )
    parser.add_argument("--batch-size", type=int, default=2048, help="interactions a step (default 2048)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of each group of arms (default 9)")
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=60.0,
        help="stop a group's rounds after this, not before three (default 60)",
    )
    parser.add_argument("--threads", type=int, default=0, help="threads of torch and of the fused CPU backend")
    parser.add_argument("--seed", type=int, default=0, help="of data, parameters and batches (default 0)")
    parser.add_argument(
        "--mmrec", default="", metavar="PATH", help="a checkout of MMRec, whose own models are timed too"
    )
    parser.add_argument("--out", default="", metavar="FILE", help="where to write the record (JSON)")


def run(args: argparse.Namespace) -> int:
    import torch

    from mmrec_helpers.config import check_at_least, choose, resolve_device
    from mmrec_helpers.data import open_dataset
    from mmrec_helpers.experiments.bench import BACKENDS, GROUPS, MODELS, run_bench
    from mmrec_helpers.mmrec.checkout import own_steps
    from mmrec_helpers.records import write_record

    backends = tuple(choose("backend", name, BACKENDS) for name in args.backends or BACKENDS)
    models = tuple(choose("model", name, MODELS) for name in args.models or MODELS)
    groups = tuple(choose("group", name, GROUPS) for name in args.groups or GROUPS)
    check_at_least("bench", 0, threads=args.threads)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    data = open_dataset(args.dataset, args.visual or None, args.textual or None, seed=args.seed, scale=args.scale)
    settings = {
        "backends": backends,
        "models": models,
        "groups": groups,
        "batch_size": args.batch_size,
        "repeats": args.repeats,
        "max_seconds": args.max_seconds,
    }
    own = own_steps(args.mmrec, data, args.seed, device) if args.mmrec else contextlib.nullcontext()
    with own as own_models:
        content = run_bench(data, **settings, seed=args.seed, device=device, own_models=own_models, say=_say)
    print(describe(content, f"{data.name} on {device}"))
    if args.out:
        path = write_record(args.out, "bench", content, settings=settings, data=data, device=device, seed=args.seed)
        print(f"record written to {path}")
    return 0


def _say(text: str) -> None:
    print(f"... {text}", flush=True)


def describe(content: dict[str, Any], title: str) -> str:
    """The tables of a record of kind "bench"."""
    from mmrec_helpers.config import counted

    threads = counted(content["threads"], "thread")
    parts = [f"\n{title}, batch {content['batch_size']}, {threads}, fast: {content['fast']}"]
    parts += [f"left out: {entry['arm']}: {entry['reason']}" for entry in content["left_out"]]
    parts.append(_times(content))
    if content["ratios"]:
        parts.append(_ratios(content["ratios"]))
    return "\n\n".join(parts)


def _times(content: dict[str, Any]) -> str:
    """One row an arm and heap: median and quartiles of the time, and the peak memory of a call."""
    import pandas as pd

    peaks = {(entry["group"], entry["arm"]): entry["peak_bytes"] for entry in content["memory"]}
    rows = [
        {
            "what": entry["group"],
            "arm": arm["name"],
            "heap": entry["heap"],
            "median ms": f"{arm['median_ms']:.2f}",
            "quartiles": f"{arm['q1_ms']:.2f} to {arm['q3_ms']:.2f}",
            "peak MB": f"{peaks[entry['group'], arm['name']] / 1e6:.1f}",
        }
        for entry in content["groups"]
        for arm in entry["timings"]["table"]
    ]
    return _text(pd.DataFrame(rows))


def _ratios(ratios: list[dict[str, Any]]) -> str:
    """One row a target and heap."""
    import pandas as pd

    rows = [
        {
            "ratio of times": row["what"],
            "heap": row["heap"],
            "median": f"{row['median']:.2f}",
            "quartiles": f"{row['q1']:.2f} to {row['q3']:.2f}",
            "of peak memory": "" if row["peak_ratio"] is None else f"{row['peak_ratio']:.1f}",
            "at least": "" if row["least"] is None else f"{'at most ' if row['below'] else ''}{row['least']:g}",
            "aim": "" if row["aim"] is None else f"{row['aim']:g}",
            "": row["verdict"],
        }
        for row in ratios
    ]
    return _text(pd.DataFrame(rows))


def _text(table: Any) -> str:
    return table.drop(columns=[name for name in table if (table[name] == "").all()]).to_string(index=False)
