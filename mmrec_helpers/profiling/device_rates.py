"""What this device can do at best: rates of moving and of computing, measured here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from mmrec_helpers.config import check_at_least, check_positive, resolve_device
from mmrec_helpers.profiling.timing import measure

_ROUNDS, _GATHER_WIDTH = 15, 64


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
    max_seconds: float = 2.0,
) -> DeviceRates:
    """Measure copying, gathering and float32 matrix products: the two limits of a roofline.

    products     (inner, columns) of each product, (``rows``, inner) times (inner, columns)
    copy_mib     MiB of the copied and gathered array: take well above the caches. Some five times that is in use
    max_seconds  bounds each of the two groups, products and the rest, which run interleaved within themselves

    >>> rates = measure_rates(products=[(64, 64)], rows=256, copy_mib=4, max_seconds=0.1)
    >>> ridge = rates.matmul_gflop_s / rates.copy_gb_s  # operations per byte above which computing limits
    """
    check_at_least("rates", 1, rows=rows, copy_mib=copy_mib)
    check_positive("rates", max_seconds=max_seconds)
    device = resolve_device(device)
    source = torch.ones(copy_mib * 2**18, device=device)
    target, n_rows = torch.empty_like(source), copy_mib * 2**18 // _GATHER_WIDTH
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(0))
    gather = _gather(n_rows, _GATHER_WIDTH, order, device)
    moved = _fastest_ms({"copy": lambda: target.copy_(source), "gather": gather}, device, max_seconds)
    multiplied = _fastest_ms({(k, n): _product(rows, k, n, device) for k, n in products}, device, max_seconds)
    table = [(rows, k, n, 2 * rows * k * n / ms / 1e6) for (k, n), ms in multiplied.items()]
    return DeviceRates(
        device=str(device),
        threads=torch.get_num_threads(),
        copy_gb_s=2 * source.nbytes / moved["copy"] / 1e6,
        gather_gb_s=_gathered_bytes(order, _GATHER_WIDTH) / moved["gather"] / 1e6,
        gather_width=_GATHER_WIDTH,
        copy_bytes=source.nbytes,
        matmul=pd.DataFrame(table, columns=["rows", "inner", "columns", "gflop_s"]),
    )


def gather_gb_s(rows: int, width: int, device: str | torch.device = "cpu", gathered: int = 400_000) -> float:
    """10^9 bytes per second of reading ``gathered`` rows at random from a table (rows, width) of float32 and writing
    them one after the other; the fastest of some rounds. A table that leaves the caches is read more slowly.

        gather_gb_s(10_000, 64), gather_gb_s(1_000_000, 64)
    """
    check_at_least("rates", 1, rows=rows, width=width, gathered=gathered)
    device = resolve_device(device)
    order = torch.randint(rows, (gathered,), generator=torch.Generator().manual_seed(0))
    call = {"gather": _gather(rows, width, order, device)}
    return _gathered_bytes(order, width) / _fastest_ms(call, device, 1.0)["gather"] / 1e6


def _fastest_ms(functions: dict[Any, Callable], device: torch.device, max_seconds: float) -> dict[Any, float]:
    timings = measure(functions, repeats=_ROUNDS, warmup=1, device=device, max_seconds=max_seconds)
    return {name: min(values) for name, values in timings.ms.items()}


def _gather(rows: int, width: int, order: torch.Tensor, device: torch.device) -> Callable[[], torch.Tensor]:
    source, target = torch.ones(rows, width, device=device), torch.empty(len(order), width, device=device)
    order = order.to(device)
    return lambda: torch.index_select(source, 0, order, out=target)


def _gathered_bytes(order: torch.Tensor, width: int) -> int:
    return len(order) * (8 * width + 8)  # a row read and written, and its number


def _product(rows: int, inner: int, columns: int, device: torch.device) -> Callable[[], torch.Tensor]:
    left, right = torch.ones(rows, inner, device=device), torch.ones(inner, columns, device=device)
    target = torch.empty(rows, columns, device=device)
    return lambda: torch.mm(left, right, out=target)
