"""What this device can do at best: rates of moving and of computing, measured here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from mmrec_helpers.config import check_at_least, check_positive, resolve_device
from mmrec_helpers.profiling.timing import measure

_ROUNDS = 15


@dataclass(frozen=True)
class DeviceRates:
    """Rates of one device with the number of threads that torch used. A rate is that of the fastest of its rounds.

    threads       of torch
    copy_gb_s     10^9 bytes per second of a plain copy, read and written bytes counted both
    gather_gb_s   the same for reading rows of ``gather_width`` float32 in random order and writing them in a row
    matmul        one row per shape: rows, inner, columns, gflop_s (2 * rows * inner * columns over the time)
    copy_bytes    bytes of the copied array (twice that is moved)

        measure_rates("cuda").to_dict()
    """

    device: str
    threads: int
    copy_gb_s: float
    gather_gb_s: float
    gather_width: int
    copy_bytes: int
    matmul: pd.DataFrame

    @property
    def matmul_gflop_s(self) -> float:
        """The rate of the largest of the measured products."""
        size = self.matmul["rows"] * self.matmul["inner"] * self.matmul["columns"]
        return float(self.matmul.loc[size.idxmax(), "gflop_s"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a record."""
        return vars(self) | {"matmul": self.matmul.to_dict("records")}


def measure_rates(
    device: str | torch.device = "cpu",
    *,
    products: Sequence[tuple[int, int]] = ((64, 64), (384, 64), (1024, 64), (1024, 256), (1024, 1024)),
    rows: int = 8192,
    copy_mib: int = 128,
    gather_width: int = 64,
    max_seconds: float = 2.0,
) -> DeviceRates:
    """Measure copying, gathering and float32 matrix products: the two limits of a roofline.

    products     (inner, columns) of each product, (``rows``, inner) times (inner, columns)
    copy_mib     MiB of the copied and gathered array: take well above the caches. Some five times that is in use
    max_seconds  bounds each of the two groups, products and the rest, which run interleaved within themselves

    >>> rates = measure_rates(products=[(64, 64)], rows=256, copy_mib=4, max_seconds=0.1)
    >>> ridge = rates.matmul_gflop_s / rates.copy_gb_s  # operations per byte above which computing limits
    """
    check_at_least("rates", 1, rows=rows, copy_mib=copy_mib, gather_width=gather_width)
    check_positive("rates", max_seconds=max_seconds)
    device = resolve_device(device)
    copy_bytes = copy_mib * 2**20
    moved = _fastest_ms(
        {"copy": _copy(copy_bytes, device), "gather": _gather(copy_bytes, gather_width, device)}, device, max_seconds
    )
    multiplied = _fastest_ms({f"{k} {n}": _product(rows, k, n, device) for k, n in products}, device, max_seconds)
    table = [(rows, k, n, 2 * rows * k * n / multiplied[f"{k} {n}"] / 1e6) for k, n in products]
    gathered_rows = copy_bytes // (4 * gather_width)
    return DeviceRates(
        device=str(device),
        threads=torch.get_num_threads(),
        copy_gb_s=2 * copy_bytes / moved["copy"] / 1e6,
        gather_gb_s=gathered_rows * (8 * gather_width + 8) / moved["gather"] / 1e6,
        gather_width=gather_width,
        copy_bytes=copy_bytes,
        matmul=pd.DataFrame(table, columns=["rows", "inner", "columns", "gflop_s"]),
    )


def gather_gb_s(rows: int, width: int, device: str | torch.device = "cpu", gathered: int = 400_000) -> float:
    """10^9 bytes per second of reading ``gathered`` rows at random from a table (rows, width) of float32 and writing
    them one after the other; the fastest of some rounds. A table that leaves the caches is read more slowly.

        gather_gb_s(10_000, 64), gather_gb_s(1_000_000, 64)
    """
    check_at_least("rates", 1, rows=rows, width=width, gathered=gathered)
    device = resolve_device(device)
    source, target = torch.ones(rows, width, device=device), torch.empty(gathered, width, device=device)
    order = torch.randint(rows, (gathered,), generator=torch.Generator().manual_seed(0)).to(device)
    call = {"gather": lambda: torch.index_select(source, 0, order, out=target)}
    return gathered * (8 * width + 8) / _fastest_ms(call, device, 1.0)["gather"] / 1e6


def _fastest_ms(functions: dict[str, Callable], device: torch.device, max_seconds: float) -> dict[str, float]:
    timings = measure(functions, repeats=_ROUNDS, warmup=1, device=device, max_seconds=max_seconds)
    return {name: min(values) for name, values in timings.ms.items()}


def _copy(size: int, device: torch.device) -> Callable[[], torch.Tensor]:
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _gather(size: int, width: int, device: torch.device) -> Callable[[], torch.Tensor]:
    source = torch.ones(size // (4 * width), width, device=device)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(source), generator=generator).to(device)
    target = torch.empty_like(source)
    return lambda: torch.index_select(source, 0, order, out=target)


def _product(rows: int, inner: int, columns: int, device: torch.device) -> Callable[[], torch.Tensor]:
    left = torch.ones(rows, inner, device=device)
    right = torch.ones(inner, columns, device=device)
    target = torch.empty(rows, columns, device=device)
    return lambda: torch.mm(left, right, out=target)
