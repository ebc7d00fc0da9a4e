"""``study``: the accuracy of all variants on one data set, with paired seeds; goes on where it stopped."""

import argparse

from mmrec_helpers.cli._arguments import add_data_and_device, add_engine, add_training, source_of

SUMMARY = "Compare the accuracy of GRCN's variants, DRAGON, LightGCN and popularity with paired seeds"
EXAMPLES = """\
  python -m mmrec_helpers study --out reports/accuracy/embedded --variants grcn grcn-live --seeds 2 --epochs 20
  python -m mmrec_helpers study --summary --out reports/accuracy/tiktok
  python -m mmrec_helpers study --dataset ../tiktok --visual image_feat.npy --textual audio_feat.npy \\
      --out reports/accuracy/tiktok --jobs 2

Finished runs are kept: the same command goes on where it stopped, also after Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_and_device(parser, seeded="generated data; the runs have seeds 0, 1, ...")
    add_training(parser, epochs=300)
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="what to compare (default: all)")
    parser.add_argument("--seeds", type=int, default=5, help="paired runs per variant at its best setting (default 5)")
    parser.add_argument(
        "--searched", type=int, default=4, help="settings tried per variant, with seed 0 (default 4; 7: all)"
    )
    add_engine(parser)
    parser.add_argument("--summary", action="store_true", help="train nothing, summarise the finished runs in --out")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the records go; finished runs are kept")


def run(args: argparse.Namespace) -> int:
    from mmrec_helpers.experiments.accuracy.runs import run_study, write_accuracy
    from mmrec_helpers.experiments.accuracy.study import SEARCH, StudySettings
    from mmrec_helpers.files import check_folder, only_writer
    from mmrec_helpers.progress import TerminalBar, watch
    from mmrec_helpers.records import check_record_path

    check_record_path(check_folder(args.out) / "records" / "accuracy.json", "accuracy")
    if not args.summary:
        names = ("seeds", "searched", "epochs", "patience", "batch_size", "backend")
        study = StudySettings(tuple(args.variants or SEARCH), **{name: getattr(args, name) for name in names})
        with only_writer(args.out), watch(TerminalBar("study")):
            run_study(source_of(args), study, args.out, device=args.device, jobs=args.jobs, scheduler=args.scheduler)
    print(write_accuracy(args.out))
    return 0
