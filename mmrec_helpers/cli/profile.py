"""``profile``: where a step of each model goes: records, region tables and traces, without a notebook."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmrec_helpers.cli._arguments import add_data_and_device

SUMMARY = "Measure where an epoch of GRCN and DRAGON goes, as a matched pair, and keep records and traces"
EXAMPLES = """\
  python -m mmrec_helpers profile --out profile
  python -m mmrec_helpers profile --dataset baby --settings plain diagnosed --out profile-baby
  python -m mmrec_helpers profile --dataset music4all --device cuda --batch-size 4096 --settings diagnosed --memory \\
      --out profile-music4all
  python -m mmrec_helpers profile --dataset ../tiktok --visual image_feat.npy --textual audio_feat.npy --no-traces \\
      --out profile-tiktok
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_and_device(parser)
    parser.add_argument("--seed", type=int, default=0, help="of data, parameters and batches (default 0)")
    parser.add_argument(
        "--settings",
        nargs="+",
        default=["plain"],
        metavar="NAME",
        help="plain (MMRec's), diagnosed (checkpointing, mixed precision, features on the host), or both, one after "
        "the other",
    )
    parser.add_argument("--batch-size", type=int, default=2048, help="interactions a step (default 2048)")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved timed steps of each model (default 7)")
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps of each model before them (default 2)")
    parser.add_argument(
        "--max-seconds", type=float, default=120.0, help="stop the rounds after this, not before three (default 120)"
    )
    parser.add_argument("--profiled-steps", type=int, default=3, help="steps of each model in its trace (default 3)")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch (default: torch's own choice)")
    parser.add_argument("--no-traces", action="store_true", help="write the records alone")
    parser.add_argument(
        "--memory", action="store_true", help="also what the memory settings do to time and memory (a record more)"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where records/ and traces/ go")


def run(args: argparse.Namespace) -> int:
    import torch

    from mmrec_helpers.config import check_at_least, choose, resolve_device
    from mmrec_helpers.data import open_dataset
    from mmrec_helpers.experiments.epoch import SETTINGS

    wanted = [choose("settings", name, SETTINGS) for name in args.settings]
    check_at_least("profile", 1, batch_size=args.batch_size, repeats=args.repeats, profiled_steps=args.profiled_steps)
    check_at_least("profile", 0, threads=args.threads)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    data = open_dataset(args.dataset, args.visual or None, args.textual or None, seed=args.seed, scale=args.scale)
    for name in wanted:
        _profile(args, name, data, device)
    if args.memory:
        _memory(args, data, device)
    return 0


def _profile(args: argparse.Namespace, name: str, data: Any, device: Any) -> None:
    """Measure the pair under one of the settings; write its record and traces, and print what was found."""
    from mmrec_helpers.experiments.epoch import measure_epoch

    traces = None if args.no_traces else Path(args.out) / "traces" / _label(args, name)
    counts = {
        "batch_size": args.batch_size,
        "repeats": args.repeats,
        "warmup": args.warmup,
        "seed": args.seed,
        "max_seconds": args.max_seconds,
        "profiled_steps": args.profiled_steps,
    }
    epoch, profiles = measure_epoch(data, name, device=device, trace_folder=traces, **counts)
    print(describe(epoch, profiles, f"{data.name} on {device}, {name} settings"))
    path = _write(args, "epoch", _label(args, name), epoch, counts | {"settings": name}, data, device)
    print(f"record: {path}")
    if traces is not None:
        for path in write_logs(traces, list(profiles)):
            print(f"trace: {path} ({path.stat().st_size / 1e6:.1f} MB, for ui.perfetto.dev)")
        print(f"TensorBoard: tensorboard --logdir {traces / 'tensorboard'} (its page needs a network)")


def _memory(args: argparse.Namespace, data: Any, device: Any) -> None:
    from mmrec_helpers.experiments.memory_settings import measure_memory_settings

    counts = {"batch_size": args.batch_size, "repeats": args.repeats, "seed": args.seed}
    content = measure_memory_settings(data, device=device, max_seconds=args.max_seconds, **counts)
    path = _write(args, "memory", _label(args, "memory"), content, counts, data, device)
    print(f"\n{_text(content['arms'], ['model', 'arm', 'step_ms_median', 'peak_bytes', 'held_bytes'])}\nrecord: {path}")


def write_logs(folder: Path, models: list[str]) -> list[Path]:
    """Copy the models' traces in ``folder`` to where TensorBoard's profiler looks for them; returns the traces."""
    from mmrec_helpers.experiments.epoch import trace_name
    from mmrec_helpers.profiling.tensorboard import write_tensorboard
    from mmrec_helpers.profiling.traces import load_trace

    paths = [folder / trace_name(model) for model in models]
    for model, path in zip(models, paths, strict=True):
        write_tensorboard(load_trace(path), folder / "tensorboard", worker=model)
    return paths


def describe(epoch: dict[str, Any], profiles: dict[str, Any], title: str) -> str:
    """Epoch times, the ratio, and each model's regions, as text."""
    from mmrec_helpers.pages.display import device_sentence
    from mmrec_helpers.profiling.operators import device_use

    ratio = epoch["ratio_grcn_to_dragon"]
    parts = [f"\n{title}, batch {epoch['batch_size']}, {epoch['steps_per_epoch']} steps an epoch"]
    parts.append(_text(epoch["models"], ["model", "step_ms_median", "step_ms_q1", "step_ms_q3", "epoch_s"]))
    parts.append(
        f"GRCN's step over DRAGON's: {ratio['median']:.2f} (quartiles {ratio['q1']:.2f} to {ratio['q3']:.2f}, "
        f"{ratio['rounds']} pairs, {ratio['heap']})"
    )
    for model, profile in profiles.items():
        told = f"{model}: milliseconds a step under the profiler, {profile.unattributed_share:.1%} in no region"
        parts.append(f"{told}\n{_text(profile.regions, ['region', 'phase', 'calls', 'ms'])}")
    return "\n\n".join([*parts, device_sentence(device_use(profiles))])


def _label(args: argparse.Namespace, name: str) -> str:
    from mmrec_helpers.files import dataset_label

    scale = "" if args.scale == 1 else f"-{args.scale:g}"
    return f"{dataset_label(args.dataset)}{scale}-{name}"


def _write(args: argparse.Namespace, kind: str, label: str, content: Any, counts: dict, data: Any, device: Any) -> Path:
    from mmrec_helpers.files import dataset_label
    from mmrec_helpers.records import write_record

    asked = {"dataset": dataset_label(args.dataset), "scale": args.scale}
    asked |= {name: dataset_label(getattr(args, name)) if getattr(args, name) else "" for name in ("visual", "textual")}
    path = Path(args.out) / "records" / f"{label}.json"
    return write_record(path, kind, content, settings=asked | counts, data=data, device=device, seed=args.seed)


def _text(rows: Any, columns: list[str]) -> str:
    import pandas as pd

    return pd.DataFrame(rows)[columns].to_string(index=False, float_format=lambda value: f"{value:,.2f}")
