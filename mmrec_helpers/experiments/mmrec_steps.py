"""MMRec's own GRCN and DRAGON objects, accelerated and not, beside this project's reference models."""

from pathlib import Path
from typing import Any

from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.steps import CONTROL, MeasureOptions, control_of, quoted_malloc, step_runners
from mmrec_helpers.mmrec.checkout import own_steps
from mmrec_helpers.models.variants import VARIANTS
from mmrec_helpers.profiling.memory import peak_bytes
from mmrec_helpers.profiling.timing import measure

_MODELS = {"GRCN": "grcn", "DRAGON": "dragon"}


def measure_mmrec_steps(data: Interactions, options: MeasureOptions, checkout: str | Path = "") -> dict[str, Any]:
    """The content of a record of kind "mmrec-steps": steps interleaved in one run.

    checkout  a checkout of MMRec (its root folder)

    rows     per model: model, own_ms, accelerated_ms, reference_ms (medians), factor (own over accelerated) and
             reference_ratio (this project's reference over MMRec's own), medians of the paired ratios, peak_bytes of
             the own and of the accelerated step
    control  MMRec's own GRCN once more
    """
    if not checkout:
        raise InputError("mmrec-steps: --mmrec is missing: expected a checkout of MMRec")
    references = {name: VARIANTS[name].build(data, options.seed, options.device) for name in _MODELS.values()}
    own, again = (own_steps(checkout, data, options.seed, options.device) for _ in range(2))
    with quoted_malloc(options.device) as malloc:
        runners = step_runners(own | references | {CONTROL: again["MMRec GRCN"]}, data, options.training())
        timings = measure(runners, **options.timing)
        peaks = {name: peak_bytes(runners[name], options.device) for name in own}
    rows = []
    for label, reference in _MODELS.items():
        name, fast = f"MMRec {label}", f"MMRec {label} accelerated"
        medians = {"own_ms": name, "accelerated_ms": fast, "reference_ms": reference}
        rows.append(
            {
                "model": label,
                **{field: timings.median_ms(of) for field, of in medians.items()},
                "factor": timings.ratio(name, fast).to_dict(),
                "reference_ratio": timings.ratio(reference, name).to_dict(),
                "own_peak_bytes": peaks[name],
                "accelerated_peak_bytes": peaks[fast],
            }
        )
    return {
        "batch_size": options.batch_size,
        "malloc": malloc,
        "rows": rows,
        "control": control_of(timings, CONTROL, "MMRec GRCN"),
    }
