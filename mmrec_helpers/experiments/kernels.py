"""The Triton kernels as compiled for GPUs that were not at hand: registers, spills, shared memory, and the occupancy
that these allow. Nothing runs: Triton brings NVIDIA's assembler, which needs no GPU.

A multiprocessor holds as many blocks as the scarcest of four things allows: registers (each of its four parts has
16,384, given to warps in units of 256), shared memory (in units of 128 bytes, of which each block costs 1 KiB more),
warps, and blocks. Occupancy is the share of its warps that then have work.

Sources: CUDA programming guide, appendix "Compute Capabilities" (docs.nvidia.com/cuda/cuda-programming-guide), for
``LIMITS``; the units and the parts: ``cuda_occupancy.h`` of the CUDA toolkit.
"""

import re
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pandas as pd

from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.steps import MeasureOptions
from mmrec_helpers.progress import progress

LIMITS = {80: (64, 32, 164), 89: (48, 24, 100), 90: (64, 32, 228)}  # sm_: warps, blocks, KiB of shared memory
WIDTHS = (64, 128, 256)  # of the rows: 64 is MMRec's, 128 DRAGON's two modalities side by side
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    # what a step launches; no iterations: routing as shipped, three: as in the paper
    *(("attend", {"ITERATIONS": n, "BY_EDGE": side}) for n, side in ((0, True), (3, True), (0, False))),
    *(("softmax_deltas", {"BY_EDGE": side}) for side in (True, False)),
    *((name, {"ITERATIONS": n}) for name in ("users_backward", "items_backward") for n in (0, 3)),
    *(("weighted_rows", {"BY_EDGE": side}) for side in (True, False)),
    ("weighted_users_backward", {}),
)
_INTEGERS = {"order": "*i64", "pointer": "*i64", "index": "*i64", "edge": "*i64", "n_rows": "i32", "n_users": "i32"}
_PARTS, _PART_REGISTERS, _UNIT = 4, 16_384, 256


def measure_kernels(data: Interactions | None = None, options: MeasureOptions | None = None) -> dict[str, Any]:
    """The content of a record of kind "kernels"; it depends on neither the data nor the options.

    triton  its version, whose compiler this is
    kernels one row per kernel, width, launch and target: kernel, constants, width, tile, warps, whole (see
            ``ops.fused_cuda.Launch``), sm, registers (of a thread), spill_bytes (of a thread), shared_bytes (of a
            block), occupancy (0 to 1), limited_by
    """
    if find_spec("triton") is None:
        raise InputError("kernels: triton is not installed: expected triton 3.4 or later")
    from triton import __version__

    rows = [
        compile_kernel(name, width, launch, sm, **constants)
        for name, constants in progress(CASES, "compiling")
        for width in WIDTHS
        for launch in launches_of(name, width)
        for sm in LIMITS
    ]
    return {"triton": __version__, "kernels": rows}


def launches_of(name: str, width: int) -> list[Any]:
    """The different ways in which a kernel is launched on rows of a width."""
    from mmrec_helpers.ops.fused_cuda import launch_of, launches

    return list(dict.fromkeys(launch_of(_kernel(name), launch, width) for launch in launches(width)))


def compile_kernel(name: str, width: int, launch: Any, sm: int, maxnreg: int | None = None, **constants: Any) -> dict:
    """A row of ``measure_kernels``: the kernel of ``ops.fused_cuda_kernels`` compiled for ``sm``, at most ``maxnreg``
    registers a thread.

    >>> compile_kernel("attend", 64, launches(64)[0], 80, ITERATIONS=3, BY_EDGE=True)["spill_bytes"]
    0
    """
    from mmrec_helpers.ops.fused_cuda import constants_of, options_of

    options = options_of(launch) | ({"maxnreg": maxnreg} if maxnreg else {})
    fixed = constants_of(_kernel(name), launch, width, **constants)
    compiled = compiled_for(_kernel(name), fixed, sm, options)
    used = _resources(compiled) | {"warps": launch.num_warps}
    about = {"kernel": name, "constants": constants, "width": width, "tile": launch.tile, "whole": fixed.get("WHOLE")}
    return about | {"sm": sm} | used | occupancy(sm, used["registers"], used["shared_bytes"], launch.num_warps)


def compiled_for(kernel: Any, constants: Mapping[str, Any], sm: int, options: Mapping[str, Any]) -> Any:
    """What Triton makes of a kernel of float32 tables for a target, without a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(kernel.arg_names)
    signature = {n: "constexpr" if n in constants else _INTEGERS.get(n, "*fp32") for n in names}
    values = {(names.index(n),): value for n, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n].startswith("*")}
    source = ASTSource(kernel, signature, values, aligned)
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=dict(options))


def occupancy(sm: int, registers: int, shared_bytes: int, warps: int) -> dict[str, Any]:
    """occupancy (0 to 1) and limited_by of blocks of ``warps`` that take so many registers a thread.

    >>> occupancy(80, registers=128, shared_bytes=0, warps=8)
    {'occupancy': 0.25, 'limited_by': 'registers'}
    """
    most_warps, most_blocks, shared_kib = LIMITS[sm]
    of_a_warp = _up(32 * max(1, registers), _UNIT)
    blocks = {
        "warps": most_warps // warps,
        "registers": _PARTS * (_PART_REGISTERS // of_a_warp) // warps,
        "shared memory": 1024 * shared_kib // _up(shared_bytes + 1024, 128),
        "blocks": most_blocks,
    }
    limit = min(blocks, key=lambda name: blocks[name])
    return {"occupancy": blocks[limit] * warps / most_warps, "limited_by": limit}


def kernel_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """Per kernel and width: registers of a thread, spilled bytes of a thread, shared bytes of a block, occupancy in per
    cent and what limits it, each for the targets in turn, of the launch that is ``worst_first``."""
    worst = worst_first(content).drop_duplicates(["kernel", "width", "sm"])
    worst = worst.sort_index().sort_values("sm", kind="stable")  # groups keep the order of the kernels
    worst = worst.assign(percent=100 * worst["occupancy"])
    columns = {"registers": "registers", "spilled bytes": "spill_bytes", "shared bytes": "shared_bytes"}
    columns |= {"occupancy %": "percent", "limited by": "limited_by"}
    shown = {name: (column, _in_turn) for name, column in columns.items()}
    return worst.groupby(["kernel", "width"], sort=False).agg(**shown).reset_index()


def worst_first(content: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a "kernels" record, first what spills most, then what has the lowest occupancy."""
    keys = {"spill_bytes": False, "occupancy": True, "registers": False}
    return pd.DataFrame(content["kernels"]).sort_values([*keys], ascending=[*keys.values()], kind="stable")


def _in_turn(values: pd.Series) -> str:
    """Such as "40 / 48 / 40", or once if all are the same."""
    texts = [value if isinstance(value, str) else f"{value:.0f}" for value in values]
    return " / ".join(texts if len(set(texts)) > 1 else texts[:1])


def _kernel(name: str) -> Any:
    from mmrec_helpers.ops import fused_cuda_kernels

    return getattr(fused_cuda_kernels, name)


def _resources(compiled: Any) -> dict[str, int]:
    """Read from the machine code: what lies on a thread's stack was spilled, since the kernels keep nothing there."""
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(cuobjdump), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (found,) = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    registers, stack, fixed, local = map(int, found)
    return {"registers": registers, "spill_bytes": stack + local, "shared_bytes": fixed + compiled.metadata.shared}


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
