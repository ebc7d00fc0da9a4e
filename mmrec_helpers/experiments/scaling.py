"""How time and memory of a step grow with the graph, the widths, the iterations and the batch, and what that predicts.

One quantity at a time is varied around a middle workload that is smaller than the data set; the whole data set is
measured too, and kept out of every fit, so that a prediction can be checked on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmrec_helpers.data import PRESETS, Interactions, subset
from mmrec_helpers.experiments.scaling_fit import HELD_OUT
from mmrec_helpers.experiments.steps import MeasureOptions, StepRunner, quoted_malloc, step_limit_bytes, step_runners
from mmrec_helpers.models import Recommender
from mmrec_helpers.models.step_cost import predicted_step_bytes
from mmrec_helpers.models.variants import Variant, find_variants
from mmrec_helpers.profiling.device_rates import gather_gb_s
from mmrec_helpers.profiling.memory import peak_bytes
from mmrec_helpers.profiling.timing import measure
from mmrec_helpers.progress import progress

SCALED = ("grcn", "grcn-fused", "grcn-live-fused", "dragon", "dragon-fused")


@dataclass(frozen=True)
class Point:
    """One workload: shares of the data set, the settings of the step, and a share of the batch size asked for."""

    sweep: str
    users: float = 0.5
    items: float = 0.5
    interactions: float = 1.0
    width: int = 64
    iterations: int = 3
    batch: float = 1.0


POINTS = (
    Point("middle"),
    Point("interactions", interactions=0.25),
    Point("interactions", interactions=0.5),
    Point("interactions", users=0.7, items=0.7),
    Point("users", users=0.25),
    Point("items", items=0.25),
    Point("width", width=16),
    Point("width", width=32),
    Point("iterations", iterations=0),
    Point("iterations", iterations=1),
    Point("iterations", iterations=2),
    Point("batch", batch=0.25),
    Point(HELD_OUT, users=1.0, items=1.0),
)


def measure_scaling(data: Interactions, options: MeasureOptions, variants: Sequence[str] = SCALED) -> dict[str, Any]:
    """The content of a record of kind "scaling".

    variants  names in ``models.variants``; iterations are varied only where they cost something

    points    one row per variant and workload: variant, label, sweep, sizes (n_users, n_items, n_edges, feature_width,
              hidden_width, width, iterations, batch_size, modalities), step_ms (median, interleaved over all points of
              a variant) with its quartiles, peak_bytes of a step
    gather    GB/s of reading rows at random from tables of several sizes (rows, gb_s): what leaves the caches is slower
    left_out  variants and points whose step is predicted to need more memory than there is
    """
    sets = {shares: subset(data, *shares, seed=options.seed) for shares in dict.fromkeys(map(_shares, POINTS))}
    rows, left_out = [], []
    with quoted_malloc(options.device) as malloc:
        for variant in progress(find_variants(variants), "variant"):
            runners, too_large = _runners(variant, sets, options)
            left_out += too_large
            rows += _measured(variant, runners, options)
        gather = _gather_rates(data, options)
    return {"batch_size": options.batch_size, "malloc": malloc, "points": rows, "gather": gather, "left_out": left_out}


def has_loop(variant: Variant) -> bool:
    """Whether iterations cost this variant something: the fused backend leaves a loop that changes nothing out."""
    return variant.model == "grcn" and (variant.backend == "reference" or variant.options.get("routing") == "live")


def _gather_rates(data: Interactions, options: MeasureOptions) -> list[dict[str, float]]:
    """From tables as large as the middle workload's, the data set's, and those of every preset (both graphs' nodes)."""
    sizes = {(data.n_users + data.n_items) // 2, data.n_users + data.n_items}
    sizes |= {shape.n_users + shape.n_items for shape in PRESETS.values()}
    return [{"rows": rows, "gb_s": gather_gb_s(rows, 64, options.device)} for rows in sorted(sizes)]


def _shares(point: Point) -> tuple[float, float, float]:
    return point.users, point.items, point.interactions


def _runners(
    variant: Variant, sets: Mapping[tuple[float, float, float], Interactions], options: MeasureOptions
) -> tuple[dict[Point, tuple[StepRunner, Interactions]], list[dict[str, Any]]]:
    """A runner per point, with its data; and what is left out."""
    runners, left_out = {}, []
    for point in POINTS:
        if point.sweep == "iterations" and not has_loop(variant):
            continue
        data = sets[_shares(point)]
        model = _model(variant, point, data, options)
        predicted = predicted_step_bytes(variant.model, data, model.settings, model.backend)
        if predicted > step_limit_bytes(options.device):
            left_out.append({"variant": variant.name, **asdict(point), "predicted_bytes": predicted})
            continue
        size = min(max(1, round(point.batch * options.batch_size)), data.train.shape[1])
        runners[point] = (step_runners({"": model}, data, options.training(batch_size=size))[""], data)
    return runners, left_out


def _model(variant: Variant, point: Point, data: Interactions, options: MeasureOptions) -> Recommender:
    loop = {"routing_iterations": point.iterations} if variant.model == "grcn" else {}
    return variant.build(data, options.seed, options.device, embedding_dim=point.width, **loop)


def _measured(
    variant: Variant, runners: Mapping[Point, tuple[StepRunner, Interactions]], options: MeasureOptions
) -> list[dict[str, Any]]:
    timings = measure({repr(point): runner for point, (runner, _) in runners.items()}, **options.timing)
    rows = []
    for point, (runner, data) in runners.items():
        times = {name.replace("median_ms", "ms"): ms for name, ms in timings.row(repr(point)).items()}
        rows.append(
            {
                "variant": variant.name,
                "label": variant.label,
                "sweep": point.sweep,
                **_sizes(variant, point, runner, data),
                **{f"step_{name}" if name == "ms" else f"step_ms_{name[:2]}": ms for name, ms in times.items()},
                "peak_bytes": peak_bytes(runner, options.device),
            }
        )
    return rows


def _sizes(variant: Variant, point: Point, runner: StepRunner, data: Interactions) -> dict[str, int]:
    return {
        "n_users": data.n_users,
        "n_items": data.n_items,
        "n_edges": data.train.shape[1],
        "feature_width": sum(data.features[m].shape[1] for m in data.modalities),
        "hidden_width": getattr(runner.model.settings, "feature_hidden", 0),
        "modalities": len(data.modalities),
        "width": point.width,
        "iterations": point.iterations if has_loop(variant) else 0,
        "batch_size": runner.batches[0].shape[1],
    }
