"""The quantities that a run states, each with one home: the record it comes from, and the one function that gives it.

Pages, cards, recommendations and verdicts take these numbers from here. A page shows one as ``session.value(name)``,
which marks it, so that a test can hold every page of a run against the table of quantities in its records.
"""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd

from mmrec_helpers.config import number
from mmrec_helpers.experiments.epoch import epoch_table, loop_share
from mmrec_helpers.experiments.memory_settings import ALL, memory_frame
from mmrec_helpers.experiments.routing import iteration_costs
from mmrec_helpers.experiments.scaling_fit import fit_scaling
from mmrec_helpers.experiments.steps import steps_frame
from mmrec_helpers.experiments.structure import parameter_counts

Contents = Mapping[str, Any]  # kind of record to its content


@dataclass(frozen=True)
class Quantity:
    """One stated number.

    name    "what.unit-like", unique
    label   for readers
    unit    after the number: "ms", "s", "MB", "times", "%"
    home    the kind of record that it comes from
    reads   further kinds that its function reads
    value   from the contents to the number, in ``unit``
    digits  significant digits shown
    """

    name: str
    label: str
    unit: str
    home: str
    value: Callable[[Contents], float]
    reads: tuple[str, ...] = ()
    digits: int = 3


def _step(variant: str, field: str, factor: float = 1.0) -> Callable[[Contents], float]:
    return lambda contents: factor * float(steps_frame(contents["steps"]).loc[variant, field])


def _quotient(above: str, below: str, field: str = "step_ms") -> Callable[[Contents], float]:
    def value(contents: Contents) -> float:
        frame = steps_frame(contents["steps"])
        return float(frame.loc[above, field] / frame.loc[below, field])

    return value


def _epoch_s(model: str) -> Callable[[Contents], float]:
    return lambda contents: float(epoch_table(contents["epoch"], contents["steps"]).loc[model, "epoch_s"])


def _fast_epoch_s(variant: str) -> Callable[[Contents], float]:
    def value(contents: Contents) -> float:
        return float(steps_frame(contents["steps"]).loc[variant, "epoch_steps_s"]) + contents["epoch"]["sampling_s"]

    return value


def _line(field: str) -> Callable[[Contents], float]:
    return lambda contents: iteration_costs(contents["steps"])[field]


def _effect(routing: str, field: str) -> Callable[[Contents], float]:
    return lambda contents: max(row[field] for row in contents["routing"]["effects"] if row["routing"] == routing)


def _counts(model: str, field: str) -> Callable[[Contents], float]:
    return lambda contents: parameter_counts(contents[f"structure-{model}"])[field]


def _dead(variant: str, kind: str) -> Callable[[Contents], float]:
    def value(contents: Contents) -> float:
        rows = [row for row in contents["dead-work"] if row["variant"] == variant and row["kind"] == kind]
        return sum(row["verdict"] == "dead" and row["inside"] is None for row in rows)

    return value


def _dead_saving(contents: Contents) -> float:
    rows = {(row["variant"], row["kind"]): row for row in contents["dead-work"]}
    return 100 * rows["grcn", "together"]["share"]


def _least(model: str) -> Callable[[Contents], float]:
    return lambda contents: sum(row["least_ms"] for row in contents["roofline"]["stages"] if row["model"] == model)


def _with_all_three(model: str, field: str, factor: float = 1.0) -> Callable[[Contents], float]:
    def value(contents: Contents) -> float:
        frame = memory_frame(contents["memory-settings"]).set_index(["model", "setting"])
        return factor * float(frame.loc[(model, ALL), field])

    return value


def _held_out(contents: Contents) -> float:
    fit = fit_scaling(pd.DataFrame(contents["scaling"]["points"]))["grcn", "step_ms"]
    return 100 * abs(fit.held_out_error)


def _saving(contents: Contents) -> float:
    return 100 * (1 - _quotient("grcn-0", "grcn")(contents))


_VALUES: dict[str, Callable[[Contents], float]] = {
    "grcn.step": _step("grcn", "step_ms"),
    "dragon.step": _step("dragon", "step_ms"),
    "grcn-to-dragon.step": _quotient("grcn", "dragon"),
    "grcn-to-dragon.diagnosed": _quotient("grcn-diagnosed", "dragon-diagnosed"),
    "noise": lambda c: 100 * c["steps"]["control"]["noise"],
    "loop.saving": _saving,
    "loop.profiled": lambda c: 100 * loop_share(c["epoch"]),
    "grcn-0.step": _step("grcn-0", "step_ms"),
    "iteration.cost": _line("per_iteration_ms"),
    "iteration.fixed": _line("fixed_ms"),
    "iterations.three-to-one": _line("three_to_one"),
    "iterations.three-to-two": _line("three_to_two"),
    "grcn-fused.step": _step("grcn-fused", "step_ms"),
    "dragon-fused.step": _step("dragon-fused", "step_ms"),
    "grcn-fused.factor": _quotient("grcn", "grcn-fused"),
    "grcn-live-fused.factor": _quotient("grcn-live", "grcn-live-fused"),
    "dragon-fused.factor": _quotient("dragon", "dragon-fused"),
    "grcn.epoch": _epoch_s("GRCN"),
    "dragon.epoch": _epoch_s("DRAGON"),
    "grcn-fused.epoch": _fast_epoch_s("grcn-fused"),
    "grcn.peak": _step("grcn", "peak_bytes", 1e-06),
    "dragon.peak": _step("dragon", "peak_bytes", 1e-06),
    "grcn-fused.peak": _step("grcn-fused", "peak_bytes", 1e-06),
    "grcn-fused.memory": _quotient("grcn", "grcn-fused", "peak_bytes"),
    "dragon-fused.memory": _quotient("dragon", "dragon-fused", "peak_bytes"),
    "grcn.least": _least("GRCN"),
    "dragon.least": _least("DRAGON"),
    "grcn-all-three.memory": _with_all_three("GRCN", "memory_ratio", 100),
    "grcn-all-three.time": _with_all_three("GRCN", "time"),
    "dragon-all-three.memory": _with_all_three("DRAGON", "memory_ratio", 100),
    "dragon-all-three.time": _with_all_three("DRAGON", "time"),
    "scaling.held-out": _held_out,
    "routing.change": _effect("as_shipped", "output_difference"),
    "routing.paper-change": _effect("live", "output_difference"),
    "attention.factor": lambda c: c["routing"]["attention"]["attention_to_convolution"]["median"],
    "dragon.without-gradient": _counts("dragon", "without_gradient"),
    "dragon.dead-parameters": _dead("dragon", "parameter"),
    "grcn.dead-calls": _dead("grcn", "call"),
    "grcn.dead-saving": _dead_saving,
}


@cache
def quantities() -> dict[str, Quantity]:
    """The registered quantities by name, in the order of quantities.csv."""
    text = resources.files("mmrec_helpers.experiments").joinpath("quantities.csv").read_text(encoding="utf-8")
    found = {}
    for row in csv.DictReader(text.splitlines()):
        name = row["name"]
        kinds, digits = tuple(row["reads"].split()), int(row["digits"])
        found[name] = Quantity(name, row["label"], row["unit"], row["home"], _VALUES[name], kinds, digits)
    return found


def quantity_table(contents: Contents) -> pd.DataFrame:
    """The account of a run: one row per quantity whose records are there: quantity, label, value, unit, home.

    contents  kind of record to its content

        quantity_table({"steps": ..., "epoch": ...})
    """
    rows = []
    for quantity in quantities().values():
        value = find_value(quantity.name, contents)
        if value is not None:
            about = {"quantity": quantity.name, "label": quantity.label, "value": value}
            rows.append(about | {"unit": quantity.unit, "home": quantity.home})
    return pd.DataFrame(rows, columns=["quantity", "label", "value", "unit", "home"])


def quantity_text(name: str, value: float, unit: bool = True, mark: bool = False) -> str:
    """A registered quantity for reading: ``278 ms``, ``42.0%``, ``9.10 times``.

    unit  show it
    mark  in markup that reads as the text, with the name and the full value, for the test of the account
    """
    quantity = quantities()[name]
    after = quantity.unit if quantity.unit in ("", "%") else f" {quantity.unit}"
    text = number(value, quantity.digits) + (after if unit else "")
    return f'<data class="quantity" data-quantity="{name}" value="{value:.6g}">{text}</data>' if mark else text


def find_value(name: str, contents: Contents) -> float | None:
    """The number of one quantity; None where a record that it reads is missing, or lacks its variant."""
    quantity = quantities()[name]
    if not {quantity.home, *quantity.reads} <= set(contents):
        return None
    try:
        return quantity.value(contents)
    except (KeyError, TypeError):  # a variant that could not run here, or no control
        return None
