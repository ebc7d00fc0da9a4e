"""``study``: the accuracy of all arms on one data set, with paired seeds; goes on where it stopped."""

from __future__ import annotations

import argparse

from mmrec_helpers.cli._arguments import add_data_and_device

SUMMARY = "Compare the accuracy of GRCN's variants, DRAGON, LightGCN and popularity with paired seeds"
EXAMPLES = """\
  python -m mmrec_helpers study --out reports/accuracy/embedded --arms as-shipped,live-3 --seeds 2 --epochs 20
  python -m mmrec_helpers study --summary --out reports/accuracy/tiktok
  python -m mmrec_helpers study --dataset ../tiktok --visual image_feat.npy --textual audio_feat.npy \\
      --out reports/accuracy/tiktok --jobs 2

Finished runs are kept: the same command goes on where it stopped, also after Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_and_device(parser)
    parser.add_argument("--backend", default="auto", help="auto, reference, sparse or fused (default auto)")
    parser.add_argument("--arms", default="", metavar="NAME,...", help="what to compare (default: all)")
    parser.add_argument("--seeds", type=int, default=5, help="paired runs an arm at its best setting (default 5)")
    parser.add_argument(
        "--searched", type=int, default=4, help="settings tried an arm, with seed 0 (default 4; 7: all)"
    )
    parser.add_argument("--epochs", type=int, default=300, help="most epochs of a run (default 300)")
    parser.add_argument("--batch-size", type=int, default=2048, help="interactions a step (default 2048)")
    parser.add_argument("--patience", type=int, default=20, help="stop after so many validations without a better one")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each (default 1)")
    parser.add_argument("--summary", action="store_true", help="train nothing, summarise the finished runs in --out")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the records go; finished runs are kept")


def run(args: argparse.Namespace) -> int:
    from mmrec_helpers.config import resolve_device
    from mmrec_helpers.experiments.accuracy.runs import Places, run_study, write_accuracy
    from mmrec_helpers.experiments.accuracy.study import ARMS, StudySettings

    arms = tuple(name.strip() for name in args.arms.split(",") if name.strip()) or tuple(ARMS)
    names = ("seeds", "searched", "epochs", "patience", "batch_size", "backend")
    study = StudySettings(arms=arms, **{name: getattr(args, name) for name in names})
    device = str(resolve_device(args.device))
    places = Places(args.dataset, args.visual, args.textual, scale=args.scale, device=device)
    if not args.summary:
        run_study(places, study, args.out, jobs=args.jobs, progress=args.jobs == 1)
    print(write_accuracy(args.out))
    return 0
