"""What a CUDA graph saves: the fast steps replayed from a graph against the same steps launched kernel by kernel."""

from __future__ import annotations

from typing import Any

import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.steps import CONTROL, MeasureOptions, control_of, step_runners
from mmrec_helpers.models.variants import VARIANTS
from mmrec_helpers.profiling.regions import device_use, profile_steps
from mmrec_helpers.profiling.timing import measure
from mmrec_helpers.training.step import WARM_UP_STEPS, cannot_be_graphed

GRAPHED = ("grcn-fused", "grcn-live-fused", "dragon-fused")
_PROFILED_STEPS = 5


def measure_cuda_graphs(data: Interactions, options: MeasureOptions) -> dict[str, Any]:
    """The content of a record of kind "cuda-graphs": steps of the fused backend, eager and graphed, interleaved.

    InputError where a step cannot be captured: on a CPU, or where the fused backend does not run.

    rows     per variant: variant, label, eager_ms and graphed_ms (medians), ratio (eager over graphed: median of the
             paired ratios), and of the eager step under the profiler launches_per_step, busy_ms, idle_ms and idle_share
    control  the first variant's eager step once more
    """
    eager, graphed = ({name: _built(name, data, options) for name in GRAPHED} for _ in range(2))
    size = min(options.batch_size, data.train.shape[1])
    again = {CONTROL: _built(GRAPHED[0], data, options)}
    runners = step_runners(eager | again, data, options.training(batch_size=size))
    replayed = step_runners(graphed, data, options.training(batch_size=size, cuda_graph=True))
    for runner in replayed.values():
        for _ in range(WARM_UP_STEPS + 1):  # the last of them captures
            runner()
    timings = measure(runners | {f"{name} graphed": runner for name, runner in replayed.items()}, **options.timing)
    rows = []
    for name in GRAPHED:
        profile = profile_steps(runners[name], steps=_PROFILED_STEPS, device=options.device)
        about = {"variant": name, "label": VARIANTS[name].label}
        times = {"eager_ms": timings.median_ms(name), "graphed_ms": timings.median_ms(f"{name} graphed")}
        ratio = {"ratio": timings.ratio(name, f"{name} graphed").to_dict()}
        use = device_use({name: profile}).drop(columns="model").to_dict("records")[0]
        rows.append(about | times | ratio | use)
    control = control_of(timings, reference=GRAPHED[0])
    return {"batch_size": size, "rows": rows, "control": control, "timings": timings.to_dict()}


def _built(name: str, data: Interactions, options: MeasureOptions) -> torch.nn.Module:
    model = VARIANTS[name].build(data, options.seed, options.device)
    reason = cannot_be_graphed(model, options.device)
    if reason is not None:
        raise InputError(f"CUDA graphs: {reason}: expected the fused backend on a CUDA device")
    return model
