"""The dead-work finder on GRCN, on DRAGON, and on planted examples whose answer is known: its controls."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.steps import MeasureOptions, quoted_malloc
from mmrec_helpers.models import Recommender
from mmrec_helpers.models.variants import VARIANTS, find_variants
from mmrec_helpers.profiling.dataflow import Recorder
from mmrec_helpers.profiling.dead_work import Finding, Saving, find_dead_work, measure_savings, with_costs
from mmrec_helpers.profiling.dead_work.costs import dead_calls, steps_without
from mmrec_helpers.profiling.dead_work.interventions import Experiment
from mmrec_helpers.training import NegativeSampler

EXAMINED = ("grcn", "grcn-live", "dragon")
WITH_LOOP, WITHOUT_LOOP = "grcn", "grcn-0"  # three iterations as shipped; none, which gives the same output
_RECORDED = 5  # steps
NOTHING = "not reported"
WIDTH = 6
COLUMNS = [*Finding.__dataclass_fields__, "share", "q1_share", "q3_share", "operators"]


def measure_dead_work(
    data: Interactions, options: MeasureOptions, variants: Iterable[str] = EXAMINED, n_batches: int = 2
) -> pd.DataFrame:
    """The content of a record of kind "dead-work": for each variant one row per finding on some training batches (a
    column ``variant`` and the fields of ``Finding``), and where calls are dead two more, of kind "together" (all dead
    calls left out) and "control" (nothing left out), with ``share``, ``q1_share``, ``q3_share`` of the step.

    For GRCN as shipped also a row of kind "loop", the same for a step without the routing loop, timed in the same
    rounds, and the rows of ``beside_the_calls``, of kind "beside": what else the loop runs.
    """
    frames = []
    batches = list(islice(NegativeSampler(data, options.device).batches(options.batch_size, options.seed), n_batches))
    for variant in find_variants(variants):
        model = variant.build(data, options.seed, options.device)
        findings = find_dead_work(model, model.loss, batches, costs=False)
        has_loop = variant.name == WITH_LOOP
        without = VARIANTS[WITHOUT_LOOP].build(data, options.seed, options.device) if has_loop else model
        beside = {"loop": partial(_step, without, batches[0])} if has_loop else {}
        with quoted_malloc(options.device):
            savings = measure_savings(model, model.loss, batches, findings, beside)
            rows = [asdict(finding) for finding in with_costs(findings, savings, model)]
            rows += [_saving_row(kind, savings[kind]) for kind in ("together", "control", "loop") if kind in savings]
            rows += beside_the_calls(model, without, batches[0], findings) if has_loop else []
        frames.append(pd.DataFrame(rows, columns=COLUMNS).assign(variant=variant.name))
    return pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)


def _saving_row(kind: str, saving: Saving) -> dict[str, Any]:
    row = {"name": kind, "kind": kind, "cost_ms": saving.ms, "cost_q1_ms": saving.q1_ms, "cost_q3_ms": saving.q3_ms}
    return row | {"share": saving.share, "q1_share": saving.q1_share, "q3_share": saving.q3_share}


def _step(model: Recommender, batch: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    model.loss(batch).backward()


def beside_the_calls(
    model: Recommender, without: Recommender, batch: Tensor, findings: Iterable[Finding]
) -> list[dict[str, Any]]:
    """What a loop of dead calls runs besides them: the operators of a step of ``model`` in which the dead calls do not
    run, less those of a step of ``without``, which has no loop. One row per source line, the most expensive first: name
    ("folder/file.py:12 function"), reason (its text), operators (how many), cost_ms (their own time, views included).
    """
    experiment = Experiment(model, model.loss)
    groups = {"": dead_calls(findings)}
    (left_out,) = steps_without(experiment, batch, groups, partial(_step, model, batch)).values()
    other = operator_counts(without, partial(_step, without, batch), batch)
    more = operator_counts(model, left_out, batch).sub(other, fill_value=0.0)
    lines = more[more["calls"] != 0].groupby(["place", "source"]).sum().sort_values("ms", ascending=False).reset_index()
    names = {"place": "name", "source": "reason", "calls": "operators", "ms": "cost_ms"}
    return lines.rename(columns=names).assign(kind="beside").to_dict("records")


def operator_counts(model: Recommender, step: Callable[[], Any], batch: Tensor) -> pd.DataFrame:
    """How often a step calls each operator (``calls``) and its own time (``ms``), by source line (place, source),
    operator and phase; medians of some steps."""
    recorder = Recorder(model, next(model.parameters()).device)
    for _ in range(_RECORDED):
        with recorder.step(batch):
            step()
    table = pd.concat(recorded.table().assign(step=number) for number, recorded in enumerate(recorder.steps))
    keys = ["place", "source", "operator", "phase"]
    return table.groupby([*keys, "step"])[["calls", "ms"]].sum().groupby(keys).median()


def planted_table() -> pd.DataFrame:
    """What was planted and what was found: columns example, name, call, planted, found.

    A row for everything planted, and for everything found that was not (planted: "not reported").
    """
    rows = []
    for example, plant in planted().items():
        found = {
            (f.name, f.call): f.verdict for f in find_dead_work(plant.model, plant.loss, plant.batches, costs=False)
        }
        for name, call in [*plant.expected, *(key for key in found if key not in plant.expected)]:
            rows.append(
                (example, name, call, plant.expected.get((name, call), NOTHING), found.get((name, call), NOTHING))
            )
        if not plant.expected and not found:
            rows.append((example, "(anything)", None, NOTHING, NOTHING))
    return pd.DataFrame(rows, columns=["example", "name", "call", "planted", "found"])


@dataclass(frozen=True)
class Planted:
    """A model, its loss, batches, and the findings expected: (name, call) to verdict; all else must stay unreported."""

    model: nn.Module
    loss: Callable[[Any], Tensor]
    batches: list[Any]
    expected: dict[tuple[str, int | None], str]


class DeadBranch(nn.Module):
    """A branch that is computed and dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.branch = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def loss(self, batch: Tensor) -> Tensor:
        self.branch(batch)
        return self.used(batch).square().mean()


class TimesZero(nn.Module):
    """A layer whose output is multiplied by zero; a gate that is zero only at the start is another matter."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.silenced, self.gated = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.gate = nn.Parameter(torch.zeros(()))

    def loss(self, batch: Tensor) -> Tensor:
        return (self.used(batch) + 0.0 * self.silenced(batch) + self.gate * self.gated(batch)).square().mean()


class UnusedHead(nn.Module):
    """A head that is never called, and a parameter frozen on purpose whose value is used."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def loss(self, batch: Tensor) -> Tensor:
        return (self.scale * self.body(batch)).square().mean()


class SometimesUsed(nn.Module):
    """A layer that matters only for batches with a positive sum."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.sometimes = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def loss(self, batch: Tensor) -> Tensor:
        extra = self.sometimes(batch)
        out = self.used(batch)
        return (out + extra if batch.sum() > 0 else out).square().mean()


class FourCalls(nn.Module):
    """A layer used four times, of which only the last matters: the shape of GRCN's routing loop."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def loss(self, batch: Tensor) -> Tensor:
        x = batch
        for _ in range(3):
            update = self.layer(x)
            x = x + update[:0].sum()  # the rows that are kept: none
        return self.layer(x).square().mean()


def planted() -> dict[str, Planted]:
    """The planted examples by name, made anew."""
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    positive = torch.rand(5, WIDTH) + 0.1
    examples: dict[str, tuple[Any, list[Tensor], dict[tuple[str, int | None], str]]] = {
        "dead branch": (DeadBranch(), [positive], {("branch", 0): "dead", **_both("branch")}),
        "times zero": (TimesZero(), [positive], {("silenced", 0): "dead", **_both("silenced"), **_undecided_gate()}),
        "unused head": (UnusedHead(), [positive], _both("head")),
        "matters for some inputs": (SometimesUsed(), [-positive, positive], {}),
        "the inputs for which it does not": (
            SometimesUsed(),
            [-positive, -2 * positive],
            {("sometimes", 0): "dead", **_both("sometimes")},
        ),
        "four calls": (FourCalls(), [positive, -positive], {("layer", k): "dead" for k in range(3)}),
    }
    torch.set_rng_state(torch_state)
    return {name: Planted(model, model.loss, given, found) for name, (model, given, found) in examples.items()}


def _both(layer: str) -> dict[tuple[str, int | None], str]:
    return {(f"{layer}.{part}", None): "dead" for part in ("weight", "bias")}


def _undecided_gate() -> dict[tuple[str, int | None], str]:
    """Behind a gate that is zero now the gradient is zero, yet the gate's own gradient depends on the layer."""
    return {(f"gated.{part}", None): "undecided" for part in ("weight", "bias")}
