"""Two fixes that no variant stands for: compiling the model, and another batch size. Every other proposed fix is a
variant of the run's "steps" record; ``FIXES`` says which belongs to which."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pandas as pd
import torch

from mmrec_helpers.config import InputError, choose
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.equality import EXACT_FLOAT32, relative_differences, result_of
from mmrec_helpers.experiments.steps import (
    CONTROL,
    MeasureOptions,
    control_of,
    full_batches,
    quoted_malloc,
    refuse_too_large,
    step_runners,
    steps_frame,
    steps_per_epoch,
    within_noise,
)
from mmrec_helpers.models.variants import REFERENCE, VARIANTS
from mmrec_helpers.profiling.timing import Timings, measure
from mmrec_helpers.progress import progress

# A proposed fix to its variants, and whether it stands for a fix of the reported claims or for one of this project.
FIXES: dict[str, tuple[str, ...]] = {
    "iterations": ("grcn-2", "grcn-1", "grcn-0", "grcn-live-2", "grcn-live-1"),
    "vectorise": ("grcn-batched", "grcn-live-batched"),
    "cache attention": ("grcn-cached", "grcn-live-cached"),
    "sparse": ("grcn-sparse", "grcn-live-sparse"),
    "alternative": ("grcn-mean", "grcn-learned", "grcn-mean-fused", "grcn-learned-fused"),
    "fused": ("grcn-fused", "grcn-live-fused"),
}
BATCH_SIZES = (512, 2048, 8192)
COMPILED = {"model": "torch.compile(model)", "loss": "torch.compile(loss)"}


def measure_fixes(
    data: Interactions,
    options: MeasureOptions,
    compile_backend: str = "inductor",
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> dict[str, Any]:
    """The content of a record of kind "fixes".

    compile_backend  of torch.compile on the loss; "" leaves that out. "inductor" is what torch.compile takes by itself;
                     it needs a C++ compiler (CPU) or Triton (CUDA), and minutes to compile on a CPU; "aot_eager"
                     captures the graphs and runs them as they are

    compile      graphs, breaks and operators compiled when the loss is called on ``torch.compile(model)``, when the
                 compiled model itself is called (a control) and when the loss itself is compiled; rows (way, ratio to
                 the reference beside them, differences in float32, exact), control
    batch_sizes  rows: backend, batch_size, steps_per_epoch, ratio of its step to that of the reference's with
                 ``options.batch_size`` in the same rounds, epoch_ratio (that of their epochs' steps)
    """
    reference = VARIANTS[REFERENCE].build(data, options.seed, options.device)
    refuse_too_large([reference], data)
    return {
        "batch_size": options.batch_size,
        "compile_backend": compile_backend,
        "compile": _compile(data, options, compile_backend),
        "batch_sizes": _batch_sizes(data, options, batch_sizes),
    }


def fixes_frame(steps: Mapping[str, Any]) -> pd.DataFrame:
    """The variants of ``FIXES`` from a record of kind "steps", in the columns of ``steps_frame``, and fix; ``ratio``,
    q1 and q3 are to the reference, GRCN as shipped with three iterations, by the row's ``share``."""
    frame = steps_frame(steps)
    rows = [frame.loc[[n for n in names if n in frame.index]].assign(fix=fix) for fix, names in FIXES.items()]
    table = pd.concat(rows)
    scale = table["share"] / table["ratio"]
    own = table["ratio"]
    table = table.assign(ratio_to_base=own, ratio=table["share"], q1=table["q1"] * scale, q3=table["q3"] * scale)
    return table.assign(within_noise=within_noise(table, steps["control"]["noise"]))


def compile_model(model: Any, way: str, compile_backend: str = "inductor") -> Any:
    """A model whose ``loss`` a training step may call.

    way  "model": ``torch.compile(model)``, as MMRec's trainer has it. Only a call of the model itself (``forward``)
         would run compiled; ``loss`` (MMRec: ``calculate_loss``) is handed through to the model as it was.
         "loss": ``torch.compile(model.loss)``; the model given is changed
    """
    if choose("way to compile", way, COMPILED) == "model":
        return torch.compile(model, backend=compile_backend)
    model.loss = torch.compile(model.loss, backend=compile_backend)
    return model


def count_graphs(call: Callable[[], Any]) -> dict[str, int]:
    """Call something once and count what torch.compile does meanwhile, all 0 if it does nothing.

    Returns graphs (compiled), breaks (of the code into several graphs) and operators (that the graphs hold).
    """
    from torch._dynamo.utils import counters

    before = _counts(counters)
    with quiet_compiler():
        call()
    return {name: count - before[name] for name, count in _counts(counters).items()}


@contextmanager
def quiet_compiler() -> Iterator[None]:
    """Without the compiler's warnings, one for every graph break."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _counts(counters: Any) -> dict[str, int]:
    stats = counters["stats"]
    broken = sum(counters["graph_break"].values())
    return {"graphs": stats["unique_graphs"], "breaks": broken, "operators": stats["calls_captured"]}


def _compile(data: Interactions, options: MeasureOptions, compile_backend: str) -> dict[str, Any]:
    ways = {"model": compile_backend or "eager"} | ({"loss": compile_backend} if compile_backend else {})
    reference, control = (VARIANTS[REFERENCE].build(data, options.seed, options.device) for _ in range(2))
    batch = full_batches(data, options.batch_size, options.seed, options.device)[0]
    base = result_of(reference, batch)
    counted = {"forward_of_compiled_model": _count_forward(data, options)}
    models = {REFERENCE: reference, CONTROL: control}
    rows: list[dict[str, Any]] = []
    for way, backend in progress(list(ways.items()), "compiling"):
        model = VARIANTS[REFERENCE].build(data, options.seed, options.device)
        compiled = compile_model(model, way, backend)
        name = "compiled_loss" if way == "loss" else "loss_of_compiled_model"
        counted[name] = count_graphs(partial(result_of, model, batch, compiled))
        with quiet_compiler():
            found = relative_differences(result_of(model, batch, compiled), base)
        rows.append({"way": way, "label": COMPILED[way]} | found | {"exact": max(found.values()) <= EXACT_FLOAT32})
        models[way] = compiled
    with quiet_compiler(), quoted_malloc(options.device):
        timings = measure(step_runners(models, data, options.training()), **options.timing)
    for row in rows:
        row["ratio"] = timings.ratio(row["way"], REFERENCE).to_dict()
    return {"graphs": counted, "rows": rows, "control": control_of(timings)}


def _count_forward(data: Interactions, options: MeasureOptions) -> dict[str, int]:
    """The control: what is compiled when the compiled model itself is called (without iterations, to be quick)."""
    torch._dynamo.reset()
    quick = torch.compile(VARIANTS["grcn-0"].build(data, options.seed, options.device), backend="eager")
    counted = count_graphs(lambda: quick().sum())
    torch._dynamo.reset()
    return counted


def _batch_sizes(data: Interactions, options: MeasureOptions, batch_sizes: Sequence[int]) -> dict[str, Any]:
    runners, rows = {}, []

    def add(key: str, variant: str, size: int) -> None:
        model = VARIANTS[variant].build(data, options.seed, options.device)
        runners[key] = step_runners({key: model}, data, options.training(batch_size=size))[key]

    own = min(options.batch_size, data.train.shape[1])
    add(REFERENCE, REFERENCE, own)
    add(CONTROL, REFERENCE, own)
    for variant in (REFERENCE, "grcn-fused"):
        for size in dict.fromkeys(min(size, data.train.shape[1]) for size in (*batch_sizes, own)):
            try:
                add(f"{variant} {size}", variant, size)
            except InputError:
                break
            rows.append({"variant": variant, "backend": VARIANTS[variant].backend, "batch_size": size})
    with quoted_malloc(options.device):
        timings = measure(runners, **options.timing)
    return {"rows": [_batch_row(row, timings, data, own) for row in rows], "control": control_of(timings)}


def _batch_row(row: dict[str, Any], timings: Timings, data: Interactions, own: int) -> dict[str, Any]:
    ratio = timings.ratio(f"{row['variant']} {row['batch_size']}", REFERENCE).to_dict()
    steps = steps_per_epoch(data, row["batch_size"])
    epoch_ratio = ratio["median"] * steps / steps_per_epoch(data, own)
    return row | {"steps_per_epoch": steps, "ratio": ratio, "epoch_ratio": epoch_ratio}
