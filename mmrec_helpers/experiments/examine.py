"""What a step costs and wastes: of a model of this project, of any of a checkout of MMRec; and planted examples."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mmrec_helpers.config import InputError, check_at_least, counted, listed
from mmrec_helpers.data import Interactions
from mmrec_helpers.data.interactions import subset
from mmrec_helpers.experiments.accelerated import STEPS, measure_gain
from mmrec_helpers.experiments.steps import MeasureOptions, Stopped, quoted_malloc, step_limit_bytes
from mmrec_helpers.mmrec import Checkout, open_checkout
from mmrec_helpers.mmrec.checkout import OwnStep
from mmrec_helpers.models.variants import find_variants
from mmrec_helpers.profiling.examine import DEAD_SECONDS, examine
from mmrec_helpers.profiling.memory import check_host_memory, peak_bytes
from mmrec_helpers.profiling.state import preserved
from mmrec_helpers.profiling.timing import DEFAULT
from mmrec_helpers.profiling.waste import CONSTANT, DEAD_CALL, DEAD_PARAMETER, EQUAL, LOST, PROVED, REPEATED
from mmrec_helpers.progress import progress
from mmrec_helpers.training import NegativeSampler

LARGE = {"interactions": 500_000, "items": 15_000}  # from which on a checkout's model is first tried on parts
_PARTS = (0.05, 0.1)
_KEPT_BYTES = 2 * 2**30  # of a step, up to which malloc may keep what is released
TABLE = ["model", "step_ms", "epoch_s", "peak_MB", "constant", "repeated", "dead", "saving_ms", "saving_q1_ms"]
TABLE += ["lost", "accelerated", "note"]
_WORTH_SAYING, _MOST_SAID = 0.01, 3  # share of a step; models in a sentence, and on a page in detail


def measure_examine(
    data: Interactions,
    options: MeasureOptions,
    model: str = "grcn",
    checkout: str | Path = "",
    dead_seconds: float = DEAD_SECONDS,
    mmrec_settings: dict[str, Any] | None = None,
    training_steps: int = STEPS,
) -> dict[str, Any]:
    """The content of a record of kind "examine": ``models``, a list with one entry per model: model, source, supplied
    (what old code needed), accelerate (what it brings, or why not), malloc, and the fields of ``Examination``; of one
    that fails among several: model, source, failed (the reason). An interrupt among several raises ``Stopped``.

    model     a variant of this project (``models.variants``); with ``checkout`` a name of MMRec's, or "all"
    checkout  a checkout of MMRec; mmrec_settings: in place of its own; training_steps: see ``measure_gain``
    dead_seconds  see ``examine``
    """
    check_at_least("examine", 0, training_steps=training_steps)
    if not checkout:
        return {"models": [_examine_own(model, data, options, dead_seconds)]}
    mmrec = open_checkout(checkout)
    if model != "all":
        return {"models": [_examine_mmrec(mmrec, model, data, options, dead_seconds, mmrec_settings, training_steps)]}
    contents = []
    for name in progress(mmrec.models, "models"):
        try:
            contents.append(_examine_mmrec(mmrec, name, data, options, dead_seconds, mmrec_settings, training_steps))
        except InputError as error:
            contents.append({"model": name, "source": "MMRec", "failed": str(error)})
        except KeyboardInterrupt as stop:
            raise (Stopped({"models": contents}) if contents else stop) from None
    return {"models": contents}


def checkout_table(contents: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per examined model: step, epoch, peak memory, the shares of the step's time that are proved constant,
    repeated and dead, what leaving all of the first two out saves, lost gradients, what ``accelerate`` brings; or the
    reason why it was not examined."""
    return pd.DataFrame([_row(content) for content in contents], columns=TABLE)


def checkout_summary(contents: Sequence[dict[str, Any]]) -> str:
    """How many models of a checkout were examined, which waste most and which become fastest, in words."""
    table = checkout_table(contents)
    table = table[table["step_ms"].notna()].assign(waste=table[["constant", "repeated", "dead"]].sum(axis=1))
    said = f"{len(table)} of {counted(len(contents), 'model')} were examined."
    worst = table[table["waste"] >= _WORTH_SAYING].nlargest(_MOST_SAID, "waste")
    shares = listed(f"{row.waste:.0%} of a step of {row.model}" for row in worst.itertuples())
    said += f" Proved waste is {shares}." if len(worst) else " None has proved waste worth saying."
    faster = table[table["accelerated"].notna()]
    most = faster.nlargest(_MOST_SAID, "accelerated")
    times = listed(f"{row.model} {row.accelerated:.1f} times as fast" for row in most.itertuples())
    return f"{said} `accelerate` makes {counted(len(faster), 'model')} faster" + (f": {times}." if len(most) else ".")


def in_detail(contents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The examined models, of many those with the most proved waste: what a page has room for."""
    examined = [content for content in contents if "failed" not in content]
    if len(examined) <= _MOST_SAID:
        return examined
    wasted = [sum(row[kind] for kind in ("constant", "repeated", "dead")) for row in map(_row, examined)]
    first = sorted(range(len(examined)), key=lambda number: -wasted[number])[:_MOST_SAID]
    return [examined[number] for number in first]


def waste_summary(content: dict[str, Any]) -> str:
    """An examined model's step, its most expensive proved waste with what to do, and its lost gradients, in words."""
    waste = pd.DataFrame(content["waste"], columns=["kind", "verdict", "what", "place", "ms", "advice"])
    proved, step_ms = waste[waste["verdict"] == PROVED], content["step_ms"]
    said = f"A step of {content['model']} takes {step_ms:,.1f} ms."
    largest = proved.dropna(subset=["ms"]).sort_values("ms", ascending=False).head(1)
    for row in largest.itertuples():
        said += f" Its largest proved waste: {row.kind} at {row.place or row.what}. {row.advice}"
    lost = proved.loc[proved["kind"] == LOST, "what"].tolist()
    return said + (f" Gradients are lost at {', '.join(lost)}." if lost else "")


def _row(content: dict[str, Any]) -> dict[str, Any]:
    if "failed" in content:
        return {"model": content["model"], "note": content["failed"]}
    waste = pd.DataFrame(content["waste"])
    step, shares = content["step_ms"], {}
    for name, kinds in (("constant", (CONSTANT,)), ("repeated", (REPEATED,)), ("dead", (DEAD_CALL, DEAD_PARAMETER))):
        proved = waste[waste["kind"].isin(kinds) & (waste["verdict"] == PROVED)] if len(waste) else waste
        shares[name] = float(proved["ms"].sum()) / step if len(proved) else 0.0
    saving, gain = content["all_saving_ms"], content["accelerate"]
    return {
        "model": content["model"],
        "step_ms": step,
        "epoch_s": content["epoch_s"],
        "peak_MB": content["peak_bytes"] / 1e6,
        **shares,
        "saving_ms": saving[0] if saving else None,
        "saving_q1_ms": saving[1] if saving else None,
        "lost": int((waste["kind"] == LOST).sum()) if len(waste) else 0,
        "accelerated": gain["factor"]["median"] if gain and "factor" in gain else None,
        "note": "; ".join(content["notes"]),
    }


def _examine_own(model: str, data: Interactions, options: MeasureOptions, dead_seconds: float) -> dict[str, Any]:
    (variant,) = find_variants([model])
    built = variant.build(data, options.seed, options.device)
    batches = NegativeSampler(data, options.device).batches(options.batch_size, options.seed)
    steps = -(-data.train.shape[1] // options.batch_size)
    with quoted_malloc(options.device) as malloc:
        found = examine(
            built, built.loss, batches, dead_seconds=dead_seconds, steps_per_epoch=steps, **_limits(options)
        )
    about = dict[str, Any](model=variant.label, source="mmrec_helpers", supplied=[], accelerate=None, malloc=malloc)
    return about | found.to_dict()


def _examine_mmrec(
    checkout: Checkout,
    name: str,
    data: Interactions,
    options: MeasureOptions,
    dead_seconds: float,
    settings: dict[str, Any] | None,
    training_steps: int,
) -> dict[str, Any]:
    how = dict[str, Any](batch_size=options.batch_size, device=options.device, seed=options.seed, settings=settings)
    _check_memory(checkout, name, data, options, how)
    model, batches = checkout.build(name, data, **how)
    if not batches.trains:
        raise InputError(f"{name} has no training step: its settings say req_training: False")
    try:
        needed = _step_memory(model, next(iter(batches)), f"a step of {name} on {data.name}", options)
        # Where blocks are large, what malloc keeps with trimming disabled comes to several times what is in use.
        with quoted_malloc(options.device) if needed < _KEPT_BYTES else nullcontext(DEFAULT) as malloc:
            found = examine(model, model.calculate_loss, batches, dead_seconds=dead_seconds, **_limits(options))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"a step of {name} on {data.name} fails: {checkout.failure(error, data)}") from error
    gain = measure_gain(checkout, name, data, options, how, training_steps=training_steps)
    about = {"model": name, "source": "MMRec", "supplied": list(batches.supplied), "accelerate": gain, "malloc": malloc}
    return about | found.to_dict()


def _limits(options: MeasureOptions) -> dict[str, Any]:
    return {"repeats": options.repeats, "max_seconds": options.max_seconds or 60.0}


def _step(model: OwnStep, batch: Tensor) -> Callable[[], None]:
    def run() -> None:
        model.zero_grad(set_to_none=True)
        model.loss(batch).backward()

    return run


def _check_memory(
    checkout: Checkout, name: str, data: Interactions, options: MeasureOptions, how: dict[str, Any]
) -> None:
    """Refuse a model on large data that would need too much: its peak, making it included, on two parts of the data,
    extrapolated by the power of the size with which it grows between them (from 1, edges, to 2, dense matrices)."""
    small_enough = data.train.shape[1] < LARGE["interactions"] and data.n_items < LARGE["items"]
    if small_enough or not options.on_cpu:
        return

    def run(share: float) -> int:
        part = _without_idle_users(subset(data, users=share, items=share))

        def built_and_stepped() -> None:
            model, batches = checkout.build(name, part, **how)
            OwnStep(model).loss(next(iter(batches))).backward()

        return peak_bytes(built_and_stepped, options.device)

    small, large = (run(share) for share in _PARTS)
    power = np.clip(np.log(large / small) / np.log(_PARTS[1] / _PARTS[0]), 1.0, 2.0)
    predicted = large * (1 / _PARTS[1]) ** power
    check_host_memory(predicted, step_limit_bytes(options.device), f"{name} on {data.name}")


def _step_memory(model: nn.Module, batch: Any, what: str, options: MeasureOptions) -> float:
    """Bytes that a step is predicted to need, refused if too many: its peak on three parts of the batch, extrapolated
    as a + b n + c n^2 (some models compare everything in a batch with everything); 0 where that is not tried."""
    if not options.on_cpu or not isinstance(batch, Tensor) or batch.dim() != 2 or batch.shape[1] < 64:
        return 0.0
    sizes = [batch.shape[1] // part for part in (16, 8, 4)]
    with preserved(model):
        model.zero_grad(set_to_none=True)
        peaks = [peak_bytes(_step(OwnStep(model), batch[:, :size])) for size in sizes]
    predicted = max(float(np.polyval(np.polyfit(sizes, peaks, 2), batch.shape[1])), *peaks)
    check_host_memory(predicted, step_limit_bytes(options.device), what)
    return predicted


def _without_idle_users(data: Interactions) -> Interactions:
    """Without the users after the last one with an interaction, which MMRec's files cannot hold."""
    last = int(data.train[0].max()) + 1
    return Interactions.from_arrays(last, data.n_items, data.train, features=data.features, name=data.name)


# ------------------------------------------------------------------------------------------------ planted examples

SIZE = 96  # of a layer and of a batch


class Planting(nn.Module):
    """A layer on a constant matrix, with one piece of waste or, as its control, work like it that is none."""

    matrix: Tensor

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.layer = what, nn.Linear(SIZE, SIZE)
        self.register_buffer("matrix", torch.rand(SIZE, SIZE))
        self.scale = torch.rand(SIZE, requires_grad=what == "lost")
        self.gain = nn.Parameter(torch.rand(SIZE))
        self.spare = nn.Linear(SIZE, SIZE) if what == "dead" else nn.Identity()

    def loss(self, batch: Tensor) -> Tensor:
        hidden = self.layer(batch)
        return (hidden * self.gain + getattr(self, f"_{self.what}")(hidden, batch) * self.scale).square().mean()

    def _constant(self, hidden: Tensor, batch: Tensor) -> Tensor:
        return (self.matrix @ self.matrix.t()).softmax(dim=1).sum(dim=0)

    def _parameters_only(self, hidden: Tensor, batch: Tensor) -> Tensor:
        return (self.layer.weight @ self.layer.weight.t()).softmax(dim=1).sum(dim=0)

    def _drawn(self, hidden: Tensor, batch: Tensor) -> Tensor:
        return (torch.rand(SIZE, SIZE) @ self.matrix).softmax(dim=1).sum(dim=0)

    def _repeated(self, hidden: Tensor, batch: Tensor) -> Tensor:
        return hidden.softmax(dim=1) * hidden.softmax(dim=1)

    def _changed_between(self, hidden: Tensor, batch: Tensor) -> Tensor:
        first, copied = hidden.softmax(dim=1), hidden * 1.0
        copied[0] += 1.0
        return first * copied.softmax(dim=1)

    def _equal(self, hidden: Tensor, batch: Tensor) -> Tensor:
        return ((hidden * 0.0) @ self.matrix + 1.0).softmax(dim=1)

    def _lost(self, hidden: Tensor, batch: Tensor) -> Tensor:
        return hidden

    def _dead(self, hidden: Tensor, batch: Tensor) -> Tensor:
        self.spare(batch)
        return hidden


PLANTED = {  # what must be found in each: kinds with their verdict; in the controls nothing
    "constant": {CONSTANT: PROVED},
    "parameters_only": {},
    "drawn": {},
    "repeated": {REPEATED: PROVED},
    "changed_between": {},
    "equal": {CONSTANT: EQUAL},
    "lost": {LOST: PROVED},
    "dead": {DEAD_CALL: PROVED, DEAD_PARAMETER: PROVED},
}


def planted_waste() -> pd.DataFrame:
    """What was planted and what was found, one row per example: example, planted, found; "nothing" for the controls."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rows = []
        for what, expected in PLANTED.items():
            model = Planting(what)
            batches = [torch.rand(SIZE, SIZE) for _ in range(3)]
            waste = examine(model, model.loss, batches, repeats=1, most_savings=0).waste
            found = set(zip(waste["kind"], waste["verdict"]))
            rows.append((what.replace("_", " "), _text(expected.items()), _text(found)))
    return pd.DataFrame(rows, columns=["example", "planted", "found"])


def _text(found: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{kind} ({verdict})" for kind, verdict in sorted(found)) or "nothing"
