"""Contents of records in the shape of the public models (loop dead, three iterations), for the tests of claims."""

from mmrec_helpers.experiments.accuracy.study import USER_METRICS
from mmrec_helpers.experiments.steps import control_of, step_rows
from mmrec_helpers.profiling.timing import Timings

MS = {
    "grcn": 100.0, "grcn-2": 90.0, "grcn-1": 80.0, "grcn-0": 58.0, "grcn-batched": 105.0, "grcn-cached": 90.0,
    "grcn-sparse": 30.0, "grcn-fused": 10.0, "grcn-mean": 70.0, "grcn-learned": 80.0, "grcn-live": 100.0,
    "grcn-live-2": 90.0, "grcn-live-1": 70.0, "grcn-live-batched": 104.0, "grcn-live-cached": 85.0,
    "grcn-live-sparse": 40.0, "grcn-live-fused": 20.0, "dragon": 50.0, "dragon-fused": 10.0, "grcn-diagnosed": 150.0,
    "dragon-diagnosed": 75.0,
}  # fmt: skip
CHANGED = {"grcn-mean": 0.6, "grcn-learned": 0.6, "grcn-live": 0.8, "grcn-live-cached": 0.05}


def steps(ms=(), noise=0.02, differences=(), left_out=()):
    """A record's content from step times, one number or one per round; a variant's difference to its base is 0 but for
    those of CHANGED."""
    ms = {name: value for name, value in {**MS, **dict(ms)}.items() if name not in left_out}
    rounds = {name: value if isinstance(value, tuple) else (value,) * 3 for name, value in ms.items()}
    timings = Timings("cpu", rounds | {"control": (100 * (1 + noise),) * 3})
    differences = CHANGED | dict(differences)
    rows = []
    for row in step_rows(timings):
        difference = differences.get(row["variant"], 0.0)
        compared = dict.fromkeys(("output_difference", "loss_difference", "gradient_difference"), difference)
        about = {"exact": None if difference is None else difference < 1e-10, "epoch_steps_s": row["step_ms"]}
        rows.append(row | compared | about | {"peak_bytes": 1e6 * row["median_ms"]})
    return {"batch_size": 2048, "steps_per_epoch": 10, "control": control_of(timings), "variants": rows}


def region(name, ms, phase="forward"):
    return {"region": name, "phase": phase, "ms": ms}


def epoch(loop_ms=60.0, final_ms=30.0, settings="plain"):
    """GRCN's step has 60 ms beside the loop and the final attention."""
    suffix = "" if settings == "plain" else "-diagnosed"
    grcn = [region("routing.visual.0", loop_ms), region("final_attention.visual", final_ms, "backward")]
    grcn += [region("features.visual", 60.0)]
    dragon = [region("user_graph", 40.0), region("convolution.visual.0", 40.0)]
    models = [
        {"model": name, "variant": name.lower() + suffix, "regions": regions, "validation_s": 1.0}
        for name, regions in (("GRCN", grcn), ("DRAGON", dragon))
    ]
    return {"settings_name": settings, "batch_size": 2048, "steps_per_epoch": 10, "sampling_s": 0.5, "models": models}


def ratio(value, spread=0.01):
    return {"median": value, "q1": value - spread, "q3": value + spread, "rounds": 3}


def routing(shipped=0.0, paper=0.3, attention=2.5, noise=0.02):
    changes = {"as_shipped": shipped, "live": paper}
    effects = [{"routing": name, "iterations": 3, "output_difference": change} for name, change in changes.items()]
    attention = {"attention_to_convolution": ratio(attention), "control": {"noise": noise}}
    return {"batch_size": 2048, "effects": effects, "attention": attention}


def pair(first, second, low, high, seeds=5):
    middle = (low + high) / 2
    metrics = {f"{name}{end}": v for name in USER_METRICS for end, v in (("", middle), ("_low", low), ("_high", high))}
    return {"first": first, "second": second, "seeds": seeds, "verdict": "open"} | metrics
