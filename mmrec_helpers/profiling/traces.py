"""Taking traces: a few steps under torch.profiler, kept as a compressed Chrome trace or for TensorBoard."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from mmrec_helpers.config import check_at_least, resolve_device
from mmrec_helpers.files import atomic_file
from mmrec_helpers.profiling.tensorboard import as_plugin_expects
from mmrec_helpers.profiling.timing import gc_paused, synchronize
from mmrec_helpers.profiling.trace_events import load_trace

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch 2.13 prints a line for each probe otherwise
_ABOUT_THE_MACHINE = ("host_name", "traceName")


def record_trace(
    step: Callable[[int], Any],
    *,
    steps: int = 3,
    device: str | torch.device = "cpu",
    memory: bool = False,
    stacks: bool = False,
) -> dict[str, Any]:
    """Run ``step(k)`` ``steps`` + 1 times under torch.profiler and return the trace of all but the first as JSON data.

    Each step ends with a synchronised device, so that what it launched lies inside it. ``memory`` adds an event for
    each allocation and release, ``stacks`` the Python lines (much larger and slower). The trace carries operator
    shapes. Its fields that name the machine are left out.
    """
    check_at_least("record_trace", 1, steps=steps)
    device = resolve_device(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        with gc_paused(), _profiler(steps, device, memory, stacks, path) as profiler:
            for k in range(steps + 1):
                step(k)
                synchronize(device)
                profiler.step()
        trace = load_trace(path)
    return {key: value for key, value in trace.items() if key not in _ABOUT_THE_MACHINE}


def _profiler(steps: int, device: torch.device, memory: bool, stacks: bool, path: Path) -> profile:
    cuda = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    # With stacks alone, one of torch-tb-profiler's views fails: it needs the verbose events as well.
    verbose = torch._C._profiler._ExperimentalConfig(verbose=True) if stacks else None
    return profile(
        activities=[ProfilerActivity.CPU, *cuda],
        schedule=schedule(wait=0, warmup=1, active=steps, repeat=1),
        on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(path)),
        record_shapes=True,
        profile_memory=memory,
        with_stack=stacks,
        experimental_config=verbose,
    )


def write_trace(trace: dict[str, Any], path: str | Path) -> Path:
    """Write a trace for Perfetto (ui.perfetto.dev) or chrome://tracing, gzipped if the name ends in ``.gz``.

    Whole or not at all: an existing file stays as it was when writing fails (NotWritten).
    """
    path = Path(path)
    content = json.dumps(trace, separators=(",", ":")).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=6, mtime=0)
    with atomic_file(path, "wb") as file:
        file.write(content)
    return path


def write_tensorboard(trace: dict[str, Any], folder: str | Path, worker: str = "steps") -> Path:
    """Write a trace where TensorBoard's profiler plugin looks for it (``<folder>/<worker>.<n>.pt.trace.json.gz``).

    Its categories are renamed to those that the plugin knows (see ``tb_adapter``), so that its page shows regions and
    device times. View it with ``tensorboard --logdir <folder>``; the page needs a network.
    """
    return write_trace(as_plugin_expects(trace), Path(folder) / f"{worker}.1.pt.trace.json.gz")
