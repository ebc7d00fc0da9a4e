"""Under what conditions something was measured. No host, user or path names."""

import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from mmrec_helpers import __version__
from mmrec_helpers.files import project_root

_PACKAGES = ("torch-geometric", "numpy", "scipy", "pandas", "numba", "triton")
_ALLOCATOR = ("MALLOC_", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "LD_PRELOAD")


def provenance(device: Any = None, seed: int | None = None, settings: Any = None, data: Any = None) -> dict[str, Any]:
    """Versions, machine, device, threads, allocator settings, code, time, and what was asked for.

    ``device`` a torch device or its name (default: the CPU); ``settings`` anything a record can hold; ``data`` an
    Interactions, of which the name, the fingerprint and the sizes are kept.
    """
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seed": seed,
        "settings": settings,
        "data": None if data is None else _data(data),
        "device": _device(str(torch.device(device or "cpu"))),
        "machine": _machine() | {"threads": torch.get_num_threads()},
        "allocator": {k: _setting(k, v) for k, v in sorted(os.environ.items()) if k.startswith(_ALLOCATOR)},
        "versions": _versions(),
        "code": _code(),
    }


def _data(data: Any) -> dict[str, Any]:
    return {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "n_users": data.n_users,
        "n_items": data.n_items,
        "n_train": data.train.shape[1],
    }


def _setting(name: str, value: str) -> str:
    """A preloaded allocator is told by its file name; a path would tell more about the machine than it should."""
    return " ".join(Path(part).name for part in value.replace(":", " ").split()) if name == "LD_PRELOAD" else value


@cache
def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"mmrec-helpers": __version__, "python": platform.python_version()}
    versions["torch"] = torch.__version__
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


@cache
def _machine() -> dict[str, Any]:
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _cpu_model() -> str:
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


@cache
def _device(name: str) -> dict[str, Any]:
    device = torch.device(name)
    if device.type != "cuda":
        return {"type": device.type, "name": _machine()["cpu"]}
    properties = torch.cuda.get_device_properties(device)
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "type": "cuda",
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "driver": driver.splitlines()[0] if driver else None,
    }


@cache
def _code() -> dict[str, Any]:
    """The checkout's commit, and whether its code differs from it (None and None outside a checkout); and the
    package's size: Python files, their lines, and how many packages it needs."""
    root, package = project_root(), Path(__file__).resolve().parents[1]
    sources = list(package.rglob("*.py"))
    needed = (
        [name for name in metadata.requires("mmrec-helpers") or () if "extra ==" not in name] if _installed() else []
    )
    size = {"files": len(sources), "lines": sum(path.read_bytes().count(b"\n") for path in sources)}
    size["dependencies"] = len(needed)
    top = root and _output("git", "-C", str(root), "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != root:
        return {"commit": None, "modified": None} | size
    code = ("mmrec_helpers", "notebooks", "pyproject.toml")
    changes = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", *code)
    return {"commit": _output("git", "-C", str(root), "rev-parse", "HEAD"), "modified": bool(changes)} | size


def _installed() -> bool:
    try:
        return bool(metadata.version("mmrec-helpers"))
    except metadata.PackageNotFoundError:
        return False


def _output(*command: str) -> str | None:
    """What a command prints, or None when it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
