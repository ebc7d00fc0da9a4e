"""A cost model fitted to measured steps, and what it says of workloads that were not measured.

Time and memory of a step are taken as a sum of terms, each a product of sizes, with coefficients of at least 0:

    1                         what every step costs whatever its size (launches, Python)
    edges x width x loops     routing iterations, one a modality
    edges x width             final attention and ID branch, or convolutions
    edges                     what is done once an edge: softmax, weights, indices
    nodes x width             embeddings, normalisation, optimizer
    items x features x rows   the feature layers' matrix products (rows: the layer's output width)
    batch x width             the loss

Fitted by non-negative least squares of the relative error, so that small workloads count as much as large ones.

Terms with edges in them gather rows of a table of nodes. Where a workload's tables leave the caches that the fitted
ones are held by, gathering is slower, by the ratio of two measured rates (``gather_slowdown``); for the backends that
do little else at the edges, these terms grow by it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from mmrec_helpers.config import InputError
from mmrec_helpers.models.variants import VARIANTS

TERMS = ("fixed", "loop", "edge rows", "edges", "node rows", "features", "batch")
HELD_OUT = "held out"  # the sweep of the points that no fit sees
GATHERED = ("loop", "edge rows", "edges")
_QUANTITIES = ("step_ms", "peak_bytes")


@dataclass(frozen=True)
class Fit:
    """One quantity of one variant as a sum of terms.

    coefficients    per term, in units of the quantity (see ``terms`` for what each multiplies)
    largest_error   relative, over the points it was fitted on
    held_out_error  relative, of the prediction for the held-out point (positive: predicted too high); NaN without one
    largest_edges   edges of the largest point, held out or not
    """

    variant: str
    quantity: str
    coefficients: Mapping[str, float]
    largest_error: float
    held_out_error: float
    largest_edges: int

    def predict(self, workload: Mapping[str, Any], slowdown: float = 1.0) -> float:
        """The quantity for a workload given as a point's sizes (see ``terms``); slowdown: of gathering at the edges."""
        values = terms(workload).items()
        return float(sum(self.coefficients[n] * value * (slowdown if n in GATHERED else 1.0) for n, value in values))


def terms(point: Mapping[str, Any]) -> dict[str, float]:
    """The value of each term for a point: its n_users, n_items, n_edges, feature_width, hidden_width, modalities,
    width, iterations and batch_size."""
    edges = point["n_edges"] * point["modalities"]
    rows = point["hidden_width"] or point["width"]
    return {
        "fixed": 1.0,
        "loop": float(edges * point["width"] * point["iterations"]),
        "edge rows": float(edges * point["width"]),
        "edges": float(edges),
        "node rows": float((point["n_users"] + point["n_items"]) * point["width"] * (1 + point["modalities"])),
        "features": float(point["n_items"] * point["feature_width"] * rows),
        "batch": float(point["batch_size"] * point["width"] * (1 + point["modalities"])),
    }


def fit_scaling(points: pd.DataFrame) -> dict[tuple[str, str], Fit]:
    """A fit for each (variant, quantity), quantity "step_ms" or "peak_bytes".

    points  the rows of a record of kind "scaling" as a frame; the rows whose sweep is "held out" are not fitted
    """
    if points.empty:
        raise InputError("scaling fit: there are no points: expected the rows of a scaling record")
    return {
        (variant, quantity): _fit(variant, quantity, rows)
        for variant, rows in points.groupby("variant", sort=False)
        for quantity in _QUANTITIES
    }


def error_table(fits: Mapping[tuple[str, str], Fit]) -> pd.DataFrame:
    """One row per fit: variant, quantity, "fitted within" (largest relative error) and "held out" (signed)."""
    rows = [(fit.variant, quantity, fit.largest_error, fit.held_out_error) for (_, quantity), fit in fits.items()]
    return pd.DataFrame(rows, columns=["variant", "quantity", "fitted within", "held out"])


def prediction_table(points: pd.DataFrame, fits: Mapping[tuple[str, str], Fit]) -> pd.DataFrame:
    """The points with what the fits say of them: columns predicted_step_ms and predicted_peak_bytes added."""
    table = points.copy()
    for quantity in _QUANTITIES:
        predicted = [fits[row["variant"], quantity].predict(row) for row in points.to_dict("records")]
        table[f"predicted_{quantity}"] = predicted
    return table


def gather_slowdown(gather: Sequence[Mapping[str, float]], fitted_rows: float, rows: float) -> float:
    """How many times slower rows are gathered from a table of ``rows`` than from one of ``fitted_rows``, at least 1.

    gather  rates by size of the table, as a record of kind "scaling" has them; between sizes: linear in log(rows)
    """
    table = sorted((point["rows"], point["gb_s"]) for point in gather)
    sizes, rates = np.log([size for size, _ in table]), [rate for _, rate in table]
    fitted, there = (float(np.interp(np.log(size), sizes, rates)) for size in (fitted_rows, rows))
    return max(1.0, fitted / there)


def predict_workload(
    scaling: Mapping[str, Any], fits: Mapping[tuple[str, str], Fit], sizes: Mapping[str, Any]
) -> pd.DataFrame:
    """What the fits say of one workload, one row per variant: variant, label, step_ms, epoch_s (the steps of an epoch),
    peak_gb, slowdown (of gathering), beyond (edges over those of the largest point measured).

    scaling  the content of a record of kind "scaling"
    sizes    n_users, n_items, n_edges, feature_width, modalities, batch_size; width 64 and three iterations are taken
    """
    points = pd.DataFrame(scaling["points"])
    middle = points[points["sweep"] == "middle"].iloc[0]
    slower = gather_slowdown(
        scaling["gather"], middle["n_users"] + middle["n_items"], sizes["n_users"] + sizes["n_items"]
    )
    rows = []
    for name in points["variant"].unique():
        variant, fit = VARIANTS[name], fits[name, "step_ms"]
        slowdown = 1.0 if variant.backend == "reference" else slower
        hidden = int(points.loc[points["variant"] == name, "hidden_width"].max())
        workload = {"width": 64, "iterations": 3, "hidden_width": hidden, **sizes}
        step_ms = fit.predict(workload, slowdown)
        rows.append(
            {
                "variant": name,
                "label": variant.label,
                "step_ms": step_ms,
                "epoch_s": -(-sizes["n_edges"] // sizes["batch_size"]) * step_ms / 1e3,
                "peak_gb": fits[name, "peak_bytes"].predict(workload) / 1e9,
                "slowdown": slowdown,
                "beyond": sizes["n_edges"] / fit.largest_edges,
            }
        )
    return pd.DataFrame(rows)


def predicted_beside_measured(
    scaling: Mapping[str, Any], fits: Mapping[tuple[str, str], Fit], records: Iterable[Mapping[str, Any]]
) -> pd.DataFrame:
    """Wherever both exist: data, variant, label, beyond, predicted_ms, measured_ms and factor (measured over predicted)
    of the steps in records of kind "steps", made on whatever data; and of their peaks predicted_mb, measured_mb and
    memory_factor."""
    rows = []
    for record in records:
        steps = {row["variant"]: row for row in record["content"]["variants"]}
        predicted = predict_workload(scaling, fits, record["content"]["sizes"])
        for row in predicted[predicted["variant"].isin(steps)].to_dict("records"):
            measured = steps[row["variant"]]["step_ms"]
            about = {"data": record["provenance"]["data"]["name"]} | {n: row[n] for n in ("variant", "label", "beyond")}
            compared = {"predicted_ms": row["step_ms"], "measured_ms": measured, "factor": measured / row["step_ms"]}
            peak = steps[row["variant"]]["peak_bytes"] or float("nan")  # a migrated record may lack it
            peaks = {"predicted_mb": 1e3 * row["peak_gb"], "measured_mb": peak / 1e6}
            rows.append(about | compared | peaks | {"memory_factor": peaks["measured_mb"] / peaks["predicted_mb"]})
    columns = ["data", "variant", "label", "beyond", "predicted_ms", "measured_ms", "factor"]
    columns += ["predicted_mb", "measured_mb", "memory_factor"]
    table = pd.DataFrame(rows, columns=columns).astype({"factor": float, "memory_factor": float})
    return table.sort_values("beyond", kind="stable", ignore_index=True)


def _fit(variant: str, quantity: str, rows: pd.DataFrame) -> Fit:
    fitted, held_out = rows[rows["sweep"] != HELD_OUT], rows[rows["sweep"] == HELD_OUT]
    if fitted.empty:
        raise InputError(f"scaling fit of {variant}: there are no points but held-out ones")
    values = fitted[quantity].to_numpy(float)
    design = np.array([list(terms(row).values()) for row in fitted.to_dict("records")])
    design = design / values[:, None]  # of relative errors
    size = np.where(design.any(axis=0), np.abs(design).max(axis=0), 1.0)
    solution, _ = nnls(design / size, np.ones(len(values)))
    coefficients = dict(zip(TERMS, map(float, solution / size), strict=True))
    errors = design @ (solution / size) - 1
    fit = Fit(variant, quantity, coefficients, float(np.abs(errors).max()), float("nan"), int(rows["n_edges"].max()))
    if held_out.empty:
        return fit
    last = held_out.iloc[0]
    error = fit.predict(last.to_dict()) / last[quantity] - 1
    return Fit(variant, quantity, coefficients, fit.largest_error, float(error), fit.largest_edges)
