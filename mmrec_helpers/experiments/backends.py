"""The parts of a step by backend: the attention block, and the ranking of all items; and the sampler of negatives."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.steps import CONTROL, MeasureOptions, control_of, quoted_malloc, step_limit_bytes
from mmrec_helpers.models.step_cost import predicted_step_bytes
from mmrec_helpers.models.variants import VARIANTS
from mmrec_helpers.ops import GraphOps, make_ops
from mmrec_helpers.ops.rows import l2_normalize
from mmrec_helpers.profiling.memory import peak_bytes
from mmrec_helpers.profiling.timing import Timings, measure
from mmrec_helpers.training import NegativeSampler, evaluate

REFERENCE_BACKEND = "reference"
_VARIANTS = {"reference": "grcn", "sparse": "grcn-sparse", "fused": "grcn-fused"}


def measure_backends(data: Interactions, options: MeasureOptions) -> dict[str, Any]:
    """The content of a record of kind "backends".

    rows       per part ("attention block": one modality, three iterations as in the paper, forward and backward;
               "evaluation": ranking all items for the users of a held-out split) and backend: part, backend, median_ms,
               q1_ms, q3_ms, ratio (of the reference's time to its own, median of the paired ratios), peak_bytes
    controls   the reference of each part once more
    sampler_s  seconds to shuffle an epoch's interactions and draw their negatives (median)
    left_out   backends that cannot run here, and why
    """
    usable, left_out = _usable(data, options)
    parts = {"attention block": _attention_calls(data, usable, options), "evaluation": _rankings(data, usable, options)}
    rows, controls = [], {}
    with quoted_malloc(options.device) as malloc:
        for part, calls in parts.items():
            if calls:
                timings = measure(calls, **options.timing)
                controls[part] = control_of(timings, reference=REFERENCE_BACKEND)
                rows += _rows(part, timings, calls, options)
        sampler = NegativeSampler(data, options.device)
        drawn = measure({"epoch": lambda: sampler.epoch(options.seed, 0)}, **options.timing)
    return {
        "malloc": malloc,
        "threads": torch.get_num_threads(),
        "rows": rows,
        "controls": controls,
        "sampler_s": drawn.median_ms("epoch") / 1e3,
        "left_out": left_out,
    }


def _usable(data: Interactions, options: MeasureOptions) -> tuple[dict[str, GraphOps], list[dict[str, str]]]:
    usable, left_out = {}, []
    for backend, variant in _VARIANTS.items():
        model = VARIANTS["grcn-0"].build(data, options.seed, options.device).settings
        needed = predicted_step_bytes(VARIANTS[variant].model, data, model, backend)
        try:
            if needed > step_limit_bytes(options.device):
                raise InputError(f"predicted to need {needed / 2**30:.1f} GiB")
            usable[backend] = make_ops(backend, data.graph, options.device)
        except InputError as error:
            left_out.append({"backend": backend, "reason": str(error)})
    return usable, left_out


def _attention_calls(
    data: Interactions, usable: Mapping[str, GraphOps], options: MeasureOptions
) -> dict[str, Callable[[], Any]]:
    generator = torch.Generator().manual_seed(options.seed)
    tables = [torch.randn(n, 64, generator=generator).to(options.device) for n in (data.n_users, data.n_items)]
    leaves = [l2_normalize(table).requires_grad_() for table in tables]

    def call(ops: GraphOps) -> Callable[[], None]:
        def run() -> None:
            outputs = ops.attention_block(leaves[0], leaves[1], 3, "live")
            torch.autograd.grad([output.sum() for output in outputs], leaves)

        return run

    return _with_control({backend: call(ops) for backend, ops in usable.items()})


def _rankings(
    data: Interactions, usable: Mapping[str, GraphOps], options: MeasureOptions
) -> dict[str, Callable[[], Any]]:
    split = next((split for split in ("valid", "test") if getattr(data, split).shape[1]), None)
    if split is None:
        return {}
    models = {backend: VARIANTS[_VARIANTS[backend]].build(data, options.seed, options.device) for backend in usable}
    return _with_control({backend: partial(evaluate, model, data, split) for backend, model in models.items()})


def _with_control(calls: dict[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    return calls | ({CONTROL: calls[REFERENCE_BACKEND]} if REFERENCE_BACKEND in calls else {})


def _rows(
    part: str, timings: Timings, calls: Mapping[str, Callable[[], Any]], options: MeasureOptions
) -> list[dict[str, Any]]:
    return [
        {"part": part, "backend": backend}
        | timings.row(backend)
        | {"ratio": timings.ratio(REFERENCE_BACKEND, backend).to_dict() if REFERENCE_BACKEND in calls else None}
        | {"peak_bytes": peak_bytes(calls[backend], options.device)}
        for backend in calls
        if backend != CONTROL
    ]
