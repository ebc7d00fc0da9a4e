"""``train``: train one model to early stopping and keep its course as a record."""

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mmrec_helpers.cli._arguments import add_data_and_device, add_out, add_training, source_of

SUMMARY = "Train one model on a data set to early stopping, and write its course as a record"
EXAMPLES = """\
  python -m mmrec_helpers train grcn --out trained
  python -m mmrec_helpers train dragon --dataset ../tiktok --visual image_feat.npy --textual audio_feat.npy \\
      --learning-rate 1e-4 -o reg_weight 0.1 --checkpoint dragon.pt --out trained
  python -m mmrec_helpers train grcn -o routing live -o routing_iterations 1 --epochs 50 --out live
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", choices=("grcn", "dragon", "lightgcn"), help="what to train")
    add_data_and_device(parser)
    add_training(parser, epochs=1000)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of Adam (default 0.001)")
    parser.add_argument("--eval-every", type=int, default=1, help="validate after every so many epochs (default 1)")
    parser.add_argument(
        "-o",
        dest="options",
        nargs=2,
        action="append",
        default=[],
        metavar=("OPTION", "VALUE"),
        help="an option of the model, such as reg_weight 0.1 or routing live (repeatable)",
    )
    parser.add_argument("--checkpoint", default=None, metavar="FILE", help="write after each epoch; resume if there")
    add_out(parser)


def run(args: argparse.Namespace) -> int:
    from mmrec_helpers.config import resolve_device
    from mmrec_helpers.experiments.steps import memory_advice
    from mmrec_helpers.files import only_writer
    from mmrec_helpers.models import build
    from mmrec_helpers.records import plain, write_record
    from mmrec_helpers.training import TrainSettings, fit

    settings = TrainSettings(
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
        patience=args.patience,
        eval_every=args.eval_every,
    )
    options, device, source = _options(args), resolve_device(args.device), source_of(args)
    targets = _targets(args)
    with ExitStack() as held:
        for target in targets:
            held.enter_context(only_writer(target.parent, target.name))
        data = source.open()
        held.enter_context(memory_advice(data, device, args.batch_size))
        model = build(args.model, data, backend=args.backend, seed=args.seed, device=str(device), **options)
        history = fit(model, data, settings, checkpoint=args.checkpoint)
        content = {"model": args.model, "backend": model.backend, "options": options, **history.to_dict()}
        made_with = source.settings | plain(settings)
        if history.stopped == "interrupted" and _is_complete(targets[0]):
            print(f"{targets[0]}: the record of an earlier, complete training stays", file=sys.stderr)
        else:
            write_record(targets[0], "training", content, settings=made_with, data=data, device=device, seed=args.seed)
    print(_summary(args.model, history))
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    return 0


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The model's options, checked before the data set is opened."""
    from mmrec_helpers.config import InputError, choose, settings_from
    from mmrec_helpers.files import parse_literal
    from mmrec_helpers.models import MODELS
    from mmrec_helpers.ops import BACKENDS

    choose("backend", args.backend, BACKENDS)
    for name, value in args.options:
        if name in ("seed", "backend", "device"):
            raise InputError(f"-o {name}: expected --{name} {value}")
    options = {name: parse_literal(text) for name, text in args.options}
    settings_from(MODELS[args.model][1], args.model, options)
    return options


def _targets(args: argparse.Namespace) -> list[Path]:
    """The record, and the checkpoint if there is one; refused before the work begins where they cannot be written."""
    from mmrec_helpers.config import InputError
    from mmrec_helpers.files import check_folder
    from mmrec_helpers.records import check_record_path
    from mmrec_helpers.training.checkpoint import check_checkpoint_path

    record = check_record_path(check_folder(args.out) / "records" / f"training-{args.model}.json", "training")
    if args.checkpoint is None:
        return [record]
    checkpoint = check_checkpoint_path(args.checkpoint)
    there, here = (Path(os.path.abspath(path)) for path in (record, checkpoint))
    if here == there or here in there.parents or there in here.parents:
        raise InputError(f"--checkpoint {checkpoint}: the record {record} goes there: expected another file")
    return [record, checkpoint]


def _is_complete(record: Path) -> bool:
    from mmrec_helpers.records import read_record

    return record.exists() and read_record(record, "training")["content"]["stopped"] != "interrupted"


def _summary(name: str, history: Any) -> str:
    from mmrec_helpers.config import counted

    best = "" if history.best_epoch is None else f", best validation in epoch {history.best_epoch + 1}"
    lines = [f"{name}: {counted(len(history.epochs), 'epoch')} trained ({history.stopped}){best}"]
    for split in ("valid", "test"):
        metrics = getattr(history, split)
        if metrics is not None:
            lines.append(f"  {split}: recall@20 {metrics['recall@20']:.4f}, ndcg@20 {metrics['ndcg@20']:.4f}")
    return "\n".join([*lines, *([f"  {history.note}"] if history.note else [])])
