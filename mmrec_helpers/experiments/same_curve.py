"""One training run in two backends from one seed: is it the same curve, and what does it take?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mmrec_helpers.config import check_at_least, choose
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.steps import MeasureOptions
from mmrec_helpers.models.variants import VARIANTS
from mmrec_helpers.records import readable_records
from mmrec_helpers.training import History, TrainSettings, fit

ROUNDING = 1e-3  # relative: what counts as the same loss; see ``measure_same_curve``
LEARNING_RATES = {"grcn": 1e-3, "grcn-live": 1e-3, "dragon": 1e-4}  # of the variants that are trained


def measure_same_curve(
    data: Interactions, options: MeasureOptions, variants: tuple[str, ...] = tuple(LEARNING_RATES), epochs: int = 5
) -> dict[str, Any]:
    """The content of a record of kind "same-curve": each variant trained in the reference and in the fused backend from
    the same parameters, on the same batches.

    rows  per variant: variant, label, learning_rate, epochs, steps_per_epoch, ``runs`` (per backend: loss, epoch_s and
          "valid.recall@20" of each epoch), loss_differences (relative, of each epoch), metric_differences (absolute, of
          each epoch's validation recall@20; empty without a validation split), same (all losses within ROUNDING) and
          time_ratio (of the epochs' training times, reference over fused, without the first epoch, in which kernels are
          compiled, if there are more)

    The two backends sum in other orders, and Adam divides each gradient by its size, so that a number that is next to
    nothing moves a parameter by a whole step either way: differences grow with the steps. What stays within ROUNDING is
    called the same curve.
    """
    check_at_least("same curve", 1, epochs=epochs)
    for name in variants:
        choose("variant to train", name, LEARNING_RATES)
    rows = [_trained(data, name, options, epochs) for name in variants]
    return {"batch_size": options.batch_size, "rounding": ROUNDING, "rows": rows}


def find_same_curve(*folders: str | Path) -> dict[str, Any] | None:
    """The first record of kind "same-curve" in the runs below these folders, in their order; None if there is none.

    find_same_curve(session.run_folder, reports_folder())
    """
    paths = (path for folder in folders for path in sorted(Path(folder).rglob("records/*same-curve.json")))
    found = (record for path in paths for record in readable_records([path]).values())
    return next((record for record in found if record["kind"] == "same-curve"), None)


def same_curve_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """One row per variant of a record of kind "same-curve", for reading."""
    rows = []
    for row in content["rows"]:
        seconds = {f"{backend}, s": sum(run["epoch_s"]) for backend, run in row["runs"].items()}
        rows.append(
            {
                "model": row["label"],
                "epochs": row["epochs"],
                "largest difference of a loss": max(row["loss_differences"]),
                "of recall@20": max(row["metric_differences"], default=None),
                **seconds,
                "times faster": row["time_ratio"],
            }
        )
    return pd.DataFrame(rows)


def _trained(data: Interactions, name: str, options: MeasureOptions, epochs: int) -> dict[str, Any]:
    variant, rate = VARIANTS[name], LEARNING_RATES[name]
    settings = TrainSettings(
        epochs=epochs, batch_size=options.batch_size, seed=options.seed, patience=None, learning_rate=rate
    )
    histories = {}
    for backend in ("reference", "fused"):
        model = variant.build(data, options.seed, options.device, backend=backend)
        histories[backend] = fit(model, data, settings, progress=False)
    return {
        "variant": name,
        "label": variant.label,
        "learning_rate": rate,
        "epochs": epochs,
        "steps_per_epoch": histories["fused"].steps_per_epoch,
        "runs": {backend: _course(history) for backend, history in histories.items()},
        **_compared(histories["reference"], histories["fused"]),
    }


def _course(history: History) -> dict[str, list[float]]:
    names = ("loss", "epoch_s", "valid.recall@20")
    return {name: [row[name] for row in history.epochs if name in row] for name in names}


def _compared(first: History, second: History) -> dict[str, Any]:
    pairs = list(zip(first.epochs, second.epochs, strict=True))
    losses = [abs(b["loss"] - a["loss"]) / abs(a["loss"]) for a, b in pairs]
    metric = "valid.recall@20"
    timed = pairs[1:] or pairs
    return {
        "loss_differences": losses,
        "metric_differences": [abs(b[metric] - a[metric]) for a, b in pairs if metric in a],
        "same": max(losses) <= ROUNDING,
        "time_ratio": sum(a["epoch_s"] for a, _ in timed) / sum(b["epoch_s"] for _, b in timed),
    }
