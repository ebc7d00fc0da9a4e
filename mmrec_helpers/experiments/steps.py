"""The steps of all variants, from one paired, interleaved measurement: the home of every step time that a run states.

Every variant is timed in every round, and the reference (GRCN as MMRec ships it) twice: its second instance is the
control, which changes nothing. A variant's ``ratio`` is the median of the paired ratios to its base within the rounds;
its ``share`` is the product of the ratios down to the reference, and its ``step_ms`` that share of the reference's
median step. So shares, factors and milliseconds of a run agree with each other by construction. What differs from 1 by
no more than the control does is noise.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import psutil
import torch
from torch import Tensor, nn

from mmrec_helpers.config import InputError, check_at_least, check_positive, out_of_memory, resolve_device
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.equality import EXACT, relative_differences, result_of
from mmrec_helpers.models import MODELS, Recommender
from mmrec_helpers.models.step_cost import predicted_step_bytes
from mmrec_helpers.models.variants import REFERENCE, VARIANTS, Variant, with_bases
from mmrec_helpers.profiling import memory
from mmrec_helpers.profiling.memory import peak_bytes
from mmrec_helpers.profiling.timing import DEFAULT, TRIMMING_DISABLED, Timings, controllable, measure, trimming_disabled
from mmrec_helpers.progress import progress
from mmrec_helpers.training import NegativeSampler, TrainSettings
from mmrec_helpers.training.sampling import split_batches
from mmrec_helpers.training.step import GraphedStep, make_optimizer, make_scaler, train_step

CONTROL = "control"  # the reference once more: a change that changes nothing
CORE = (REFERENCE, "grcn-fused", "dragon", "dragon-fused")  # timed under both settings of malloc
_ELSEWHERE = ("lightgcn", "popularity", *(name for name in VARIANTS if name.endswith(("all-three", "-precision"))))
_ELSEWHERE += tuple(name for name in VARIANTS if name.endswith(("-checkpointing", "-features-on-host")))
STEP_VARIANTS = tuple(name for name in VARIANTS if name not in _ELSEWHERE)
_GIB = 2**30


class Stopped(KeyboardInterrupt):
    """A long measurement was interrupted; ``content`` is what its record can hold by then."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__()
        self.content = content


@dataclass(frozen=True)
class MeasureOptions:
    """Options that every measurement understands.

    device       where models run: "auto", "cpu", "cuda", "cuda:1" or a torch device
    seed         of parameters, order of interactions and negatives
    batch_size   interactions per step
    repeats      rounds of interleaved timing
    warmup       untimed calls of each function before the first round
    max_seconds  stop a group's rounds after this, though not before three; None: no limit

        options = MeasureOptions(device="cuda", batch_size=4096)
        measure(functions, **options.timing)
    """

    device: torch.device | str = "cpu"
    seed: int = 0
    batch_size: int = 2048
    repeats: int = 9
    warmup: int = 2
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        check_at_least("measuring", 1, batch_size=self.batch_size, repeats=self.repeats)
        check_at_least("measuring", 0, seed=self.seed, warmup=self.warmup)
        if self.max_seconds is not None:
            check_positive("measuring", max_seconds=self.max_seconds)
        object.__setattr__(self, "device", resolve_device(self.device))

    @property
    def on_cpu(self) -> bool:
        return torch.device(self.device).type == "cpu"

    @property
    def timing(self) -> dict[str, Any]:
        """The keyword arguments of ``profiling.timing.measure``."""
        return {name: getattr(self, name) for name in ("repeats", "warmup", "device", "max_seconds")}

    @property
    def settings(self) -> dict[str, Any]:
        """What a record keeps of them; the device and the seed stand in its provenance."""
        kept = ("seed", "batch_size", "repeats", "warmup", "max_seconds")
        return {name: value for name, value in asdict(self).items() if name in kept}

    def training(self, **options: Any) -> TrainSettings:
        """Settings of training steps under these options."""
        return TrainSettings(**{"batch_size": self.batch_size, "seed": self.seed} | options)


def step_limit_bytes(device: torch.device | str) -> float:
    """What a step may need: 16 GiB of host memory, or what is free on the GPU."""
    return torch.cuda.mem_get_info(device)[0] if torch.device(device).type == "cuda" else memory.HOST_LIMIT_BYTES


def refuse_too_large(models: Iterable[Recommender], data: Interactions) -> None:
    """Raise an InputError for the first GRCN or DRAGON on the CPU whose step is predicted to pass 16 GiB."""
    for model in models:
        if model.device.type == "cpu":
            predicted = predicted_step_bytes(model.name, data, model.settings, model.backend)
            what = f"a step of {model.name} ({model.backend}) on {data.name}"
            memory.check_host_memory(predicted, memory.HOST_LIMIT_BYTES, what)


@contextlib.contextmanager
def memory_advice(data: Interactions, device: torch.device | str, batch_size: int) -> Iterator[None]:
    """Make an out-of-memory error of the block a MemoryError that says, in one line, what is predicted to fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said, on_gpu = out_of_memory(error), torch.device(device).type == "cuda"
        if said is None:
            raise
        total = torch.cuda.get_device_properties(device).total_memory if on_gpu else psutil.virtual_memory().total
        needed = {name: variant_step_bytes(VARIANTS[name], data) for name in CORE}
        steps = ", ".join(f"{name} {size / _GIB:.2g} GiB" for name, size in needed.items())
        fit = " and ".join(name for name, size in needed.items() if size < total / 2) or "none of them"
        raise MemoryError(
            f"{said}; predicted for a step on {data.name}: {steps}; into half of the {total / _GIB:.0f} GiB fits "
            f"{fit}: take a fused backend or variant, a --batch-size below {batch_size}, or a smaller --scale"
        ) from error


def variant_step_bytes(variant: Variant, data: Interactions) -> float:
    """``predicted_step_bytes`` of a variant."""
    options = MODELS[variant.model][1](**variant.options)
    return predicted_step_bytes(variant.model, data, options, variant.backend)


class StepRunner:
    """Trains a model one step per call, on the batches of one epoch, over and over.

    model     any torch module with ``loss(batch)``
    batches   int64 (3, B) each, on the model's device; only full ones, so that all steps do the same work
    settings  with ``cuda_graph`` the first steps run as they are, then one is captured, and from there on replayed
    """

    def __init__(self, model: Any, batches: list[Tensor], settings: TrainSettings) -> None:
        self.model, self.batches, self.settings = model, batches, settings
        self.optimizer, self.scaler = make_optimizer(model, settings), make_scaler(model)
        self.graphed = GraphedStep(model, self.optimizer, settings.max_grad_norm) if settings.cuda_graph else None
        self.done = 0

    def __call__(self, *_: Any) -> Tensor:
        return self.train_on(self.next_batch())

    def next_batch(self) -> Tensor:
        self.done += 1
        return self.batches[(self.done - 1) % len(self.batches)]

    def train_on(self, batch: Tensor) -> Tensor:
        if self.graphed is not None:
            return self.graphed(batch)
        return train_step(self.model, self.optimizer, batch, self.settings.max_grad_norm, self.scaler)


def step_runners(
    models: Mapping[str, nn.Module], data: Interactions, settings: TrainSettings | Mapping[str, TrainSettings]
) -> dict[str, StepRunner]:
    """A runner per model, all on the same batches (those of the seed's epoch 0).

    settings  for all, or per model (their batch sizes and seeds must be the same)
    """
    batches: dict[torch.device, list[Tensor]] = {}
    runners = {}
    for name, model in models.items():
        own = settings if isinstance(settings, TrainSettings) else settings[name]
        device = next(model.parameters()).device
        if device not in batches:
            batches[device] = full_batches(data, own.batch_size, own.seed, device)
        runners[name] = StepRunner(model.train(), batches[device], own)
    return runners


def full_batches(data: Interactions, batch_size: int, seed: int, device: torch.device | str) -> list[Tensor]:
    """The batches of epoch 0 that are full; the only one there is, if it is short."""
    batches = list(split_batches(NegativeSampler(data, device).epoch(seed, 0), batch_size))
    return batches[:-1] if len(batches) > 1 and batches[-1].shape[1] < batch_size else batches


def steps_per_epoch(data: Interactions, batch_size: int) -> int:
    return -(-data.train.shape[1] // batch_size)


def workload_sizes(data: Interactions, batch_size: int) -> dict[str, int]:
    """The sizes that a step's cost depends on, as ``scaling_fit`` names them."""
    return {
        "n_users": data.n_users,
        "n_items": data.n_items,
        "n_edges": data.train.shape[1],
        "feature_width": sum(data.features[m].shape[1] for m in data.modalities),
        "modalities": len(data.modalities),
        "batch_size": batch_size,
    }


def measure_steps(
    data: Interactions, options: MeasureOptions, variants: Sequence[str] = STEP_VARIANTS, compare: bool = True
) -> dict[str, Any]:
    """The content of a record of kind "steps".

    variants  names in ``models.variants``; what they are compared with is measured beside them
    compare   also compare outputs, losses and gradients, in float64 from the same parameters

    variants        rows of ``step_rows``, and per row peak_bytes (of a step, beyond what it began with), epoch_steps_s
                    (the steps of an epoch), output_difference, loss_difference, gradient_difference (relative to the
                    base's; None where not compared) and exact (all within rounding)
    control         median, q1, q3 of the second reference over the first; noise, the largest distance of these from 1
    malloc          the setting under which ``variants`` were timed, which is the one to quote
    default_malloc  rows of ``CORE`` under glibc's default, with their own control; empty where malloc cannot be set
    left_out        variants that cannot run here, and why
    sizes           n_users, n_items, n_edges, feature_width, modalities and batch_size of the workload
    """
    built, left_out = _build_all(with_bases(variants), data, options)
    if REFERENCE not in built and not built:
        raise InputError(f"steps: no variant can run here: {'; '.join(row['reason'] for row in left_out)}")
    batch = full_batches(data, options.batch_size, options.seed, options.device)[0]
    differences = _differences(list(built), data, batch, options) if compare else {}
    settings = {name: options.training(**VARIANTS[name].training) for name in built}
    runners = step_runners(built, data, settings)
    if REFERENCE in runners:
        again = VARIANTS[REFERENCE].build(data, options.seed, options.device)
        runners[CONTROL] = step_runners({CONTROL: again}, data, options.training())[CONTROL]
    core = None
    if options.on_cpu and controllable():  # the default first: what malloc has kept stays with the process
        core = measure({name: runners[name] for name in (*CORE, CONTROL) if name in runners}, **options.timing)
    with quoted_malloc(options.device) as malloc:
        quoted = measure(runners, **options.timing)
        peaks = {name: peak_bytes(runners[name], options.device) for name in progress(list(built), "measuring memory")}
    steps = steps_per_epoch(data, options.batch_size)
    rows = [
        row
        | {"peak_bytes": peaks[row["variant"]], "epoch_steps_s": steps * row["step_ms"] / 1e3}
        | differences.get(row["variant"], _NOT_COMPARED)
        for row in step_rows(quoted)
    ]
    return {
        "batch_size": options.batch_size,
        "steps_per_epoch": steps,
        "sizes": workload_sizes(data, options.batch_size),
        "threads": torch.get_num_threads(),
        "reference": REFERENCE,
        "malloc": malloc,
        "control": control_of(quoted),
        "variants": rows,
        "default_malloc": {"control": control_of(core), "variants": step_rows(core)} if core else None,
        "left_out": left_out,
    }


@contextlib.contextmanager
def quoted_malloc(device: torch.device | str) -> Iterator[str]:
    """The setting of malloc under which times are quoted, named: trimming disabled where it can be set (on a CPU)."""
    on_cpu = torch.device(device).type == "cpu"
    if not on_cpu or not controllable():
        yield DEFAULT if on_cpu else ""
        return
    with trimming_disabled():
        yield TRIMMING_DISABLED


def step_rows(timings: Timings) -> list[dict[str, Any]]:
    """One row per timed variant: what it is (variant, label, model, backend, base), its raw median_ms, q1_ms, q3_ms,
    ratio (to its base: median, q1, q3, rounds of the paired ratios), ratio_of_medians, share (of the reference's step),
    step_ms (that share of the reference's median), within_noise (the ratio is no farther from 1 than the control), and
    agrees (the ratio is within the noise of the ratio of the medians)."""
    noise = control_of(timings)["noise"]
    shares: dict[str, float] = {}
    rows = []
    reference_ms = timings.median_ms(REFERENCE) if REFERENCE in timings.ms else None
    for variant in (VARIANTS[name] for name in timings.ms if name != CONTROL):
        base = variant.base if variant.base in timings.ms else variant.name
        ratio = timings.ratio(variant.name, base).to_dict()
        of_medians = timings.median_ms(variant.name) / timings.median_ms(base)
        share = shares[variant.name] = ratio["median"] * shares.get(base, 1.0)
        rows.append(
            {
                **{name: getattr(variant, name) for name in ("label", "model", "backend")},
                "variant": variant.name,
                "base": base,
                **timings.row(variant.name),
                "ratio": ratio,
                "ratio_of_medians": of_medians,
                "share": None if reference_ms is None else share,
                "step_ms": timings.median_ms(variant.name) if reference_ms is None else share * reference_ms,
                "within_noise": noise is not None and abs(ratio["median"] - 1) <= noise,
                "agrees": noise is not None and abs(ratio["median"] / of_medians - 1) <= noise,
            }
        )
    return rows


def control_of(timings: Timings | None, control: str = CONTROL, reference: str = REFERENCE) -> dict[str, Any]:
    """The control's ratio (median, q1, q3, rounds) and noise: the largest distance of these from 1."""
    if timings is None or not {control, reference} <= set(timings.ms):
        return {"median": None, "q1": None, "q3": None, "rounds": 0, "noise": None}
    ratio = timings.ratio(control, reference).to_dict()
    return ratio | {"noise": max(abs(ratio[name] - 1) for name in ("median", "q1", "q3"))}


def steps_frame(steps: Mapping[str, Any]) -> pd.DataFrame:
    """The variants of a record of kind "steps" by name: its columns, the ratio as ratio, q1, q3 and rounds,
    within_noise, and factor (how many times faster than its base)."""
    frame = pd.DataFrame([row | _flat(row["ratio"]) for row in steps["variants"]]).set_index("variant", drop=False)
    return frame.assign(factor=1 / frame["ratio"], within_noise=within_noise(frame, steps["control"]["noise"]))


def within_noise(table: pd.DataFrame, noise: float | None) -> pd.Series:
    """Where the ratio is no farther from 1 than the control's, or its quartiles q1 and q3 lie on both sides of 1."""
    return (table["ratio"] - 1).abs().le(noise or 0) | (table["q1"].le(1) & table["q3"].ge(1))


_NOT_COMPARED = {"output_difference": None, "loss_difference": None, "gradient_difference": None, "exact": None}


def _flat(ratio: Mapping[str, Any]) -> dict[str, Any]:
    return {"ratio": ratio["median"], "q1": ratio["q1"], "q3": ratio["q3"], "rounds": ratio["rounds"]}


def _build_all(
    wanted: Iterable[Variant], data: Interactions, options: MeasureOptions
) -> tuple[dict[str, Recommender], list[dict[str, str]]]:
    """The models that can run here, and why the others cannot: a backend that lacks something, or too little memory."""
    built, left_out, limit = {}, [], step_limit_bytes(options.device)
    for variant in progress(list(wanted), "building models"):
        try:
            model = variant.build(data, options.seed, options.device)
        except InputError as error:
            left_out.append({"variant": variant.name, "label": variant.label, "reason": str(error)})
            continue
        predicted = predicted_step_bytes(variant.model, data, model.settings, model.backend)
        if predicted > limit:
            reason = f"predicted to need {predicted / _GIB:.1f} GiB, more than {limit / _GIB:.1f} GiB"
            left_out.append({"variant": variant.name, "label": variant.label, "reason": reason})
        else:
            built[variant.name] = model
    return built, left_out


def _differences(
    names: Sequence[str], data: Interactions, batch: Tensor, options: MeasureOptions
) -> dict[str, dict[str, Any]]:
    """By variant the differences to its base in float64; none where that would need too much memory."""
    limit, results, found = step_limit_bytes(options.device), {}, {}
    bases = {VARIANTS[name].base for name in names}
    for name in progress(names, "comparing outputs and gradients"):
        variant = VARIANTS[name]
        if variant.options.get("mixed_precision"):
            continue  # computes in 16 bits, whatever its parameters are
        model = variant.build(data, options.seed, options.device)
        if 2 * predicted_step_bytes(variant.model, data, model.settings, model.backend) > limit:
            continue
        result = result_of(model.double(), batch)
        if name in bases:
            results[name] = result
        if variant.base == "" or (variant.base in results and VARIANTS[variant.base].model == variant.model):
            compared = relative_differences(result, results[variant.base or name])
            found[name] = compared | {"exact": max(compared.values()) <= EXACT}
    return found
