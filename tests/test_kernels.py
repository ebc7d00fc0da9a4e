"""The Triton kernels compiled for GPUs: registers, spills, occupancy by hand, and offsets that do not overflow."""

import re
import sys

import pytest

from mmrec_helpers.experiments import kernels
from mmrec_helpers.experiments.prediction import committed_record
from tests.test_ops_cuda import needs_triton_3_4

if sys.platform == "linux":  # there without Triton these tests fail rather than skip
    import triton
    import triton.language as tl

    from mmrec_helpers.ops.fused_cuda import Launch, constants_of, launches, options_of

    @triton.jit
    def overflowing(order, out, n_rows):
        tl.store(out + tl.program_id(0) * n_rows, tl.load(order))


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
LIVE = [(name, constants) for name, constants in kernels.CASES if constants.get("ITERATIONS") != 0]


@pytest.mark.parametrize(
    ("sm", "registers", "shared_bytes", "warps", "expected"),
    [
        (80, 128, 0, 8, (0.25, "registers")),  # 4096 a warp: 4 warps in each of the 4 parts
        (80, 129, 0, 8, (0.125, "registers")),  # rounded up to 4352: 3 in each, of which one block of 8 is made
        (89, 128, 0, 8, (1 / 3, "registers")),  # as many warps, of 48
        (80, 32, 0, 8, (1.0, "warps")),
        (80, 32, 0, 1, (0.5, "blocks")),
        (90, 32, 60 * 1024, 4, (3 * 4 / 64, "shared memory")),  # 3 blocks of 61 KiB in 228
    ],
)
def test_occupancy_by_hand(sm, registers, shared_bytes, warps, expected):
    assert tuple(kernels.occupancy(sm, registers, shared_bytes, warps).values()) == pytest.approx(expected)


@needs_triton_3_4
def test_a_kernel_compiles_for_sm_80_and_one_with_too_few_registers_is_seen_to_spill():
    case = {"name": "users_backward", "width": 64, "launch": launches(64)[0], "sm": 80, "ITERATIONS": 0}
    found = kernels.compile_kernel(**case)
    assert 0 < found["registers"] <= 255
    assert found["spill_bytes"] == 0
    assert 0 < found["occupancy"] <= 1
    few = kernels.compile_kernel(**case, maxnreg=24)
    assert few["registers"] <= 24
    assert few["spill_bytes"] > 0


@needs_triton_3_4
def test_a_spill_that_comes_from_a_launch_is_seen():
    wide = Launch(tile=32, num_warps=1, whole=False)
    assert kernels.compile_kernel("weighted_users_backward", 256, wide, 90)["spill_bytes"] > 0


def spilling(width, cases, targets):
    rows = [
        kernels.compile_kernel(name, width, launch, sm, **constants)
        for name, constants in cases
        for launch in kernels.launches_of(name, width)
        for sm in targets
    ]
    return [row for row in rows if row["spill_bytes"]]


@needs_triton_3_4
def test_kernels_do_not_spill_on_sm_90():
    assert spilling(64, LIVE, [90]) == []


@needs_triton_3_4
@pytest.mark.slow
@pytest.mark.parametrize("width", [16, 20, 32, 64, 96, 128, 256])
def test_no_kernel_spills_at_any_width(width):
    assert spilling(width, kernels.CASES, kernels.LIMITS) == []


def products_in_32_bits(kernel, constants):
    compiled = kernels.compiled_for(kernel, constants, 80, {"num_warps": 4})
    return re.findall(r"arith\.muli .*: (?:tensor<.*x)?i32", compiled.asm["ttir"])


@needs_triton_3_4
def test_no_offset_is_a_product_of_32_bits():
    for name, constants in LIVE:
        kernel, launch = kernels._kernel(name), launches(64)[2]
        assert products_in_32_bits(kernel, constants_of(kernel, launch, 64, **constants)) == []
    assert products_in_32_bits(overflowing, {})


@needs_triton_3_4
def test_the_committed_record_is_of_the_launches_that_the_package_makes():
    content = committed_record("kernels")["content"]
    rows = {(row["kernel"], row["width"], row["tile"], row["warps"]) for row in content["kernels"]}
    launched = {
        (name, width, launch.tile, options_of(launch)["num_warps"])
        for name, _ in kernels.CASES
        for width in kernels.WIDTHS
        for launch in kernels.launches_of(name, width)
    }
    assert rows == launched
    assert {row["sm"] for row in content["kernels"]} == set(kernels.LIMITS)


def test_the_table_takes_of_each_kernel_the_worst_launch():
    row = {"kernel": "attend", "width": 64, "registers": 40, "spill_bytes": 0, "shared_bytes": 8, "limited_by": "warps"}
    rows = [row | {"sm": sm, "occupancy": 1.0} for sm in (80, 89)]
    rows += [row | {"sm": 80, "occupancy": 0.5, "registers": 64}, row | {"sm": 89, "occupancy": 1.0, "spill_bytes": 4}]
    table = kernels.kernel_table({"kernels": rows})
    assert table[["registers", "spilled bytes", "occupancy %"]].values.tolist() == [["64 / 40", "0 / 4", "50 / 100"]]
    assert kernels.worst_first({"kernels": rows}).iloc[0]["spill_bytes"] == 4
