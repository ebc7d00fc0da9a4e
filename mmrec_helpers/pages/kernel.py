"""The kernel that notebooks run in: this interpreter's own, whatever kernelspecs the user has installed."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager


class _ThisPythonOnly(KernelSpecManager):
    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        # torch-geometric imports tqdm.auto, which warns of ipywidgets that nothing here uses.
        filters = [os.environ.get("PYTHONWARNINGS"), "ignore:IProgress not found"]
        # torch's own log lines are no part of a page: the memory profiler warns of blocks older than itself.
        environment = {"PYTHONWARNINGS": ",".join(filter(None, filters)), "TORCH_CPP_LOG_LEVEL": "ERROR"}
        return KernelSpec(argv=argv, display_name="Python 3", language="python", env=environment)


@contextmanager
def kernel_manager_class() -> Iterator[type[AsyncKernelManager]]:
    """A kernel manager class for nbclient, with a private folder for its connection files.

    Kernels talk over Unix sockets in that folder (over TCP on Windows, which has none), so that no other user of the
    machine can reach them.
    """
    folder = Path(tempfile.mkdtemp(prefix="mmrec-"))

    class ThisPython(AsyncKernelManager):
        def __init__(self, **options: Any) -> None:
            options |= {"kernel_spec_manager": _ThisPythonOnly(), "connection_file": str(folder / "kernel.json")}
            if sys.platform != "win32":
                options["transport"] = "ipc"
            super().__init__(**options)

    try:
        yield ThisPython
    finally:
        shutil.rmtree(folder, ignore_errors=True)
