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
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from mmrec_helpers.config import InputError

TERMS = ("fixed", "loop", "edge rows", "edges", "node rows", "features", "batch")
HELD_OUT = "held out"  # the sweep of the points that no fit sees
_QUANTITIES = ("step_ms", "peak_bytes")


@dataclass(frozen=True)
class Fit:
    """One quantity of one arm as a sum of terms.

    coefficients    per term, in units of the quantity (see ``terms`` for what each multiplies)
    largest_error   relative, over the points it was fitted on
    held_out_error  relative, of the prediction for the held-out point (positive: predicted too high); NaN without one
    largest_edges   edges of the largest point, held out or not
    """

    arm: str
    quantity: str
    coefficients: Mapping[str, float]
    largest_error: float
    held_out_error: float
    largest_edges: int

    def predict(self, workload: Mapping[str, Any]) -> float:
        """The quantity for a workload given as a point's sizes (see ``terms``)."""
        return float(sum(self.coefficients[name] * value for name, value in terms(workload).items()))


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
    """A fit for each (arm, quantity), quantity "step_ms" or "peak_bytes".

    points  the rows of a record of kind "scaling" as a frame; the rows whose sweep is "held out" are not fitted
    """
    if points.empty:
        raise InputError("scaling fit: there are no points: expected the rows of a scaling record")
    return {
        (arm, quantity): _fit(arm, quantity, rows)
        for arm, rows in points.groupby("arm", sort=False)
        for quantity in _QUANTITIES
    }


def error_table(fits: Mapping[tuple[str, str], Fit]) -> pd.DataFrame:
    """One row a fit: arm, quantity, "fitted within" (largest relative error) and "held out" (signed)."""
    rows = [(fit.arm, quantity, fit.largest_error, fit.held_out_error) for (_, quantity), fit in fits.items()]
    return pd.DataFrame(rows, columns=["arm", "quantity", "fitted within", "held out"])


def prediction_table(points: pd.DataFrame, fits: Mapping[tuple[str, str], Fit]) -> pd.DataFrame:
    """The points with what the fits say of them: columns predicted_step_ms and predicted_peak_bytes added."""
    table = points.copy()
    for quantity in _QUANTITIES:
        predicted = [fits[row["arm"], quantity].predict(row) for row in points.to_dict("records")]
        table[f"predicted_{quantity}"] = predicted
    return table


def predict_workload(
    fits: Mapping[tuple[str, str], Fit], workload: Mapping[str, Any], hidden_width: int = 256
) -> pd.DataFrame:
    """What the fits say of one workload, one row an arm (with a loop: 0 to 3 iterations each).

    workload  sizes as in ``terms``, without iterations and hidden_width (the latter counts for DRAGON)
    Columns: arm, iterations, step_ms, epoch_s (steps of the workload's n_edges in batches), peak_gb, beyond (edges over
    those of the largest point measured), low and high (step_ms under the arm's own held-out error, both ways).
    """
    rows = []
    for (arm, quantity), fit in fits.items():
        if quantity != "step_ms":
            continue
        for iterations in (0, 1, 2, 3) if fit.coefficients["loop"] > 0 else (0,):
            sizes = {**workload, "iterations": iterations, "hidden_width": hidden_width if "DRAGON" in arm else 0}
            step_ms = fit.predict(sizes)
            error = np.nan_to_num(abs(fit.held_out_error))
            rows.append(
                {
                    "arm": arm,
                    "iterations": iterations if fit.coefficients["loop"] > 0 else None,
                    "step_ms": step_ms,
                    "low_ms": step_ms / (1 + error),
                    "high_ms": step_ms * (1 + error),
                    "epoch_s": -(-workload["n_edges"] // workload["batch_size"]) * step_ms / 1e3,
                    "peak_gb": fits[arm, "peak_bytes"].predict(sizes) / 1e9,
                    "beyond": workload["n_edges"] / fit.largest_edges,
                }
            )
    return pd.DataFrame(rows)


def _fit(arm: str, quantity: str, rows: pd.DataFrame) -> Fit:
    fitted, held_out = rows[rows["sweep"] != HELD_OUT], rows[rows["sweep"] == HELD_OUT]
    if fitted.empty:
        raise InputError(f"scaling fit of {arm}: there are no points but held-out ones")
    values = fitted[quantity].to_numpy(float)
    design = np.array([list(terms(row).values()) for row in fitted.to_dict("records")])
    design = design / values[:, None]  # of relative errors
    size = np.where(design.any(axis=0), np.abs(design).max(axis=0), 1.0)
    solution, _ = nnls(design / size, np.ones(len(values)))
    coefficients = dict(zip(TERMS, map(float, solution / size), strict=True))
    errors = design @ (solution / size) - 1
    fit = Fit(arm, quantity, coefficients, float(np.abs(errors).max()), float("nan"), int(rows["n_edges"].max()))
    if held_out.empty:
        return fit
    last = held_out.iloc[0]
    error = fit.predict(last.to_dict()) / last[quantity] - 1
    return Fit(arm, quantity, coefficients, fit.largest_error, float(error), fit.largest_edges)
