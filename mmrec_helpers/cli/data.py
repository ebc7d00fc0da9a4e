"""``data``: list the presets, write one to disk, check a data set in MMRec's layout, or make its user graph."""

import argparse

SUMMARY = "List the presets, write one to disk, check a data set in MMRec's layout, or make its user graph"
EXAMPLES = """\
  python -m mmrec_helpers data
  python -m mmrec_helpers data synthesize baby data/baby --seed 1
  python -m mmrec_helpers data check ../tiktok --visual image_feat.npy --textual audio_feat.npy
  python -m mmrec_helpers data user-graph ../MMRec/data/baby
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="list the presets (what `data` alone does)")
    synthesize = actions.add_parser("synthesize", help="generate a preset and write it to a folder in MMRec's layout")
    synthesize.add_argument("preset")
    synthesize.add_argument("folder", help="a new or an empty folder")
    synthesize.add_argument("--seed", type=int, default=0)
    synthesize.add_argument("--scale", type=float, default=1.0, help="0.1 for a tenth of the users and items")
    check = actions.add_parser("check", help="read a folder in MMRec's layout: a summary, or what is wrong with it")
    check.add_argument("folder")
    check.add_argument("--visual", default="", metavar="FILE", help="visual features (.npy) in that folder")
    check.add_argument("--textual", default="", metavar="FILE", help="textual features (.npy) in that folder")
    users = actions.add_parser("user-graph", help="write user_graph_dict.npy, which MMRec's DualGNN and DRAGON read")
    users.add_argument("folder", help="a folder in MMRec's layout; a file of that name in it is never replaced")


def run(args: argparse.Namespace) -> int:
    if args.action == "synthesize":
        return _synthesize(args)
    if args.action == "check":
        return _check(args)
    if args.action == "user-graph":
        return _user_graph(args)
    return _list()


def _list() -> int:
    import pandas as pd

    from mmrec_helpers.data import PRESETS

    columns = ("n_users", "n_items", "n_train", "n_valid", "n_test", "visual", "textual", "source")
    rows = [
        {"preset": name} | {column: getattr(shape, column) for column in columns} for name, shape in PRESETS.items()
    ]
    table = pd.DataFrame(rows).rename(columns=lambda name: name.removeprefix("n_"))
    numbers = dict.fromkeys(table.select_dtypes("integer"), "{:,}".format)
    print(table.to_string(index=False, formatters=numbers))
    return 0


def _synthesize(args: argparse.Namespace) -> int:
    from mmrec_helpers.data import synthesize, write_mmrec
    from mmrec_helpers.data.mmrec_files import check_new_folder

    check_new_folder(args.folder)
    data = synthesize(args.preset, seed=args.seed, scale=args.scale)
    folder = write_mmrec(data, args.folder)
    _summarise(data)
    print("written   " + ", ".join(sorted(path.name for path in folder.glob("[!.]*"))))
    return 0


def _check(args: argparse.Namespace) -> int:
    from mmrec_helpers.data import load_mmrec

    _summarise(load_mmrec(args.folder, visual=args.visual or None, textual=args.textual or None))
    return 0


def _user_graph(args: argparse.Namespace) -> int:
    from mmrec_helpers.data import load_mmrec
    from mmrec_helpers.mmrec import write_user_graph

    data = load_mmrec(args.folder)
    print(f"written   {write_user_graph(data, args.folder)}, the nearest of {data.n_users:,} users")
    return 0


def _summarise(data) -> None:
    """Print sizes, splits, features and fingerprint."""
    graph = data.graph
    idle_users, idle_items = int((graph.user_degree == 0).sum()), int((graph.item_degree == 0).sum())
    widths = [f"{modality} {array.shape[1]} wide" for modality, array in data.features.items()]
    print(f"name      {data.name}")
    print(f"users     {data.n_users:,} ({idle_users:,} without training interactions)")
    print(f"items     {data.n_items:,} ({idle_items:,} without training interactions)")
    print(f"train     {data.train.shape[1]:,} interactions, {graph.n_edges / data.n_users:.1f} a user")
    print(f"valid     {data.valid.shape[1]:,} interactions")
    print(f"test      {data.test.shape[1]:,} interactions")
    print(f"features  {', '.join(widths) or 'none'}")
    print(f"digest    {data.fingerprint}")
