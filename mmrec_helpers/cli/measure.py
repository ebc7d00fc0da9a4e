"""``measure``: what the notebooks measure, part by part, unattended, one record as soon as each part is done."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrec_helpers.cli._arguments import add_data_and_device, add_out, source_of

if TYPE_CHECKING:
    from mmrec_helpers.experiments.catalogue import Part

SUMMARY = "Measure what the notebooks measure without running them, one record per part, for a machine with a GPU"
EXAMPLES = """\
  python -m mmrec_helpers measure --list
  python -m mmrec_helpers measure steps epoch --dataset baby --out measured
  python -m mmrec_helpers measure --dataset music4all --device cuda --batch-size 4096 --out reports/music4all-gpu
  python -m mmrec_helpers measure steps --dataset music4all --variants grcn-fused dragon-fused --out fast
  python -m mmrec_helpers measure same-curve --dataset ../tiktok --visual image_feat.npy --textual audio_feat.npy \\
      --out curves

then, on any machine, the pages of such a folder:
  python -m mmrec_helpers report --dataset baby --device cpu -p records measured --only 04
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("parts", nargs="*", metavar="PART", help="what to measure (default: see --list)")
    add_data_and_device(parser)
    parser.add_argument("--batch-size", type=int, default=2048, help="interactions per step (default 2048)")
    parser.add_argument("--repeats", type=int, default=9, help="interleaved rounds (default 9)")
    parser.add_argument("--warmup", type=int, default=2, help="untimed rounds before them (default 2)")
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=120.0,
        help="stop a part's rounds after this, not before three (default 120)",
    )
    parser.add_argument(
        "--total-seconds", type=float, default=None, help="start no part after this (default: no limit)"
    )
    parser.add_argument("--threads", type=int, default=0, help="threads of torch (default: torch's own choice)")
    parser.add_argument(
        "--variants", nargs="+", default=None, metavar="NAME", help="of steps, scaling, same-curve, dead-work"
    )
    parser.add_argument("--epochs", type=int, default=5, help="of same-curve (default 5)")
    parser.add_argument("--compile-backend", default="inductor", help='of fixes: inductor, aot_eager, or "" for none')
    parser.add_argument("--no-traces", action="store_true", help="keep no traces of epoch and epoch-diagnosed")
    parser.add_argument("--again", action="store_true", help="measure parts anew whose record is there already")
    parser.add_argument("--list", action="store_true", help="list the parts and the variants, and stop")
    add_out(parser, required=False)


def run(args: argparse.Namespace) -> int:
    from mmrec_helpers.config import InputError, check_at_least, choose
    from mmrec_helpers.experiments.catalogue import PARTS, default_parts, measure_parts
    from mmrec_helpers.experiments.steps import MeasureOptions
    from mmrec_helpers.models.variants import VARIANTS

    if args.list:
        return _list()
    if args.out is None:
        raise InputError("measure: --out is missing: expected the folder that records/ goes into")
    counts = {name: getattr(args, name) for name in ("seed", "batch_size", "repeats", "warmup", "max_seconds")}
    options = MeasureOptions(device=args.device, **counts)
    wanted = [choose("part", name, PARTS) for name in args.parts] or default_parts(options.device)
    for name in args.variants or ():
        choose("variant", name, VARIANTS)
    for name in wanted:
        PARTS[name].check_path(args.out)
    _set_threads(check_at_least, args.threads)
    source = source_of(args)
    data, folder = source.open(), Path(args.out)
    print(f"{data.name} on {options.device}: {', '.join(wanted)}{_expected(wanted, data)}", flush=True)
    outcomes = []
    kept = {"settings": source.settings, "more": _more(args), "again": args.again}
    for outcome in measure_parts(wanted, data, options, folder, budget_s=args.total_seconds, **kept):
        outcomes.append(outcome)
        print(f"{outcome.part}: {outcome.state}, {outcome.seconds:.1f} s {outcome.error}".rstrip(), flush=True)
        if outcome.state == "measured":
            print(_shown(PARTS[outcome.part], folder), flush=True)
    return 1 if any(outcome.state == "failed" for outcome in outcomes) else 0


def _expected(wanted: list[str], data: Any) -> str:
    """How long the parts take that were timed, such as ``; about 4 min on two CPU cores``."""
    from mmrec_helpers.experiments.catalogue import PARTS
    from mmrec_helpers.progress import duration

    known = [PARTS[name].expected_s(data.train.shape[1]) for name in wanted]
    total = sum(filter(None, known))
    return f"; about {duration(total)} on two CPU cores" if total else ""


def _list() -> int:
    from mmrec_helpers.experiments.catalogue import PARTS
    from mmrec_helpers.models.variants import VARIANTS

    when = {True: "", False: ", only when named", "cuda": ", by default on CUDA alone"}
    lines = [f"{name:18}{p.about} (records/{p.record}.json{when[p.default]})" for name, p in PARTS.items()]
    print("\n".join(lines))
    print("\nvariants:\n" + "\n".join(f"{name:24}{variant.label}" for name, variant in VARIANTS.items()))
    return 0


def _set_threads(check: Any, threads: int) -> None:
    import torch

    check("measure", 0, threads=threads)
    if threads:
        torch.set_num_threads(threads)


def _more(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Per part, the arguments beyond the options."""
    chosen = {"variants": tuple(args.variants)} if args.variants else {}
    traces = {} if args.no_traces else {"trace_folder": Path(args.out) / "traces"}
    more: dict[str, dict[str, Any]] = {name: dict(chosen) for name in ("steps", "scaling", "same-curve", "dead-work")}
    more["same-curve"]["epochs"] = args.epochs
    more["fixes"] = {"compile_backend": args.compile_backend}
    for name in ("epoch", "epoch-diagnosed"):
        more[name] = {key: folder / name for key, folder in traces.items()}
    return more


def _shown(part: Part, folder: Path) -> str:
    """What was found, for the terminal: the step times and their ratios, or a step's stages; else the record's path."""
    from mmrec_helpers.experiments.steps import steps_frame
    from mmrec_helpers.records import read_record

    content = read_record(part.path(folder), part.kind)["content"]
    if part.kind == "steps":
        return _text(steps_frame(content), ["label", "step_ms", "base", "ratio", "q1", "q3", "peak_bytes"])
    if part.kind == "epoch":
        tables = [
            f"{model['model']}, per step\n{_text(model['regions'], ['region', 'phase', 'calls', 'ms'])}"
            for model in content["models"]
        ]
        return "\n".join(tables) + _write_logs(folder / "traces" / part.name, [m["model"] for m in content["models"]])
    return f"record: {part.path(folder)}"


def _write_logs(folder: Path, models: list[str]) -> str:
    """Copy the models' traces to where TensorBoard's profiler looks for them; what lies where, in lines."""
    from mmrec_helpers.experiments.epoch import trace_name
    from mmrec_helpers.profiling.tensorboard import write_tensorboard
    from mmrec_helpers.profiling.traces import load_trace

    lines = [""]
    for model, path in ((model, folder / trace_name(model)) for model in models):
        if path.is_file():
            write_tensorboard(load_trace(path), folder / "tensorboard", worker=model)
            lines.append(f"trace: {path} ({path.stat().st_size / 1e6:.1f} MB, for ui.perfetto.dev)")
    if lines[1:]:
        lines.append(f"TensorBoard: tensorboard --logdir {folder / 'tensorboard'} (its page needs a network)")
    return "\n".join(lines)


def _text(rows: Any, columns: list[str]) -> str:
    import pandas as pd

    return pd.DataFrame(rows)[columns].to_string(index=False, float_format=lambda value: f"{value:,.3g}")
