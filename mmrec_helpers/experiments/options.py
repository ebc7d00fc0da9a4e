"""How to measure: the one object that notebooks, commands and studies hand on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from mmrec_helpers.config import check_at_least, check_positive, resolve_device
from mmrec_helpers.training import TrainSettings


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
        return self.device.type == "cpu"

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
