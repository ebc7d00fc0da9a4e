"""Run notebooks in order with papermill and export each as soon as it is done."""

import errno
import logging
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill import execute_notebook
from papermill.exceptions import PapermillExecutionError
from papermill.execute import remove_error_markers
from tqdm import tqdm

from mmrec_helpers.files import NotWritten, without_folders, write_text
from mmrec_helpers.pages.collection import Notebook, check_parameters
from mmrec_helpers.pages.html import PageContext, export_page
from mmrec_helpers.pages.index import build_index, link_pages
from mmrec_helpers.records.record import find_records, write_record


@dataclass
class PageState:
    """How far one notebook of the run is: "pending", "running", "done", "failed" or "interrupted"."""

    name: str
    title: str
    state: str = "pending"
    seconds: float | None = None
    file: str | None = None
    error: str = ""
    cell: int | None = None  # the failing code cell, counted from 1
    n_cells: int | None = None


@dataclass
class RunState:
    """What a run is about and how far it is; kept as the record of kind "run"."""

    title: str
    parameters: dict[str, Any]
    state: str = "running"  # "running", "complete", "stopped", "interrupted"
    seconds: float = 0.0
    pages: list[PageState] = field(default_factory=list)  # in reading order


class CellFailed(Exception):
    """A notebook stopped. The message is for the terminal: notebook, cell, the cell's first lines, the error."""

    def __init__(self, notebook: str, message: str) -> None:
        super().__init__(message)
        self.notebook = notebook


def run_collection(
    notebooks: Sequence[Notebook],
    run_folder: str | Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    collection: Sequence[Notebook] | None = None,
    title: str = "",
    device: Any = None,
) -> RunState:
    """Execute ``notebooks`` in the given order into ``run_folder`` and export their pages.

    parameters     each goes to the notebooks that have it; one that no notebook of the collection has is an
                   InputError, raised before anything runs. ``run`` is set here.
    collection     all notebooks of the collection, where that is more than these; the index lists them by name

    Writes ``notebooks/<name>.ipynb`` (executed), ``<name>.html``, ``index.html`` and ``records/run.json``. A failing
    cell raises CellFailed after its page, marked, and the index are written; Ctrl-C leaves the same and is raised on.
    """
    run_folder = Path(run_folder).resolve()
    parameters = dict(parameters or {})
    listed = sorted(collection or notebooks, key=lambda notebook: notebook.name)
    check_parameters(listed, parameters)
    for unused in parameters.keys() - {name for notebook in notebooks for name in notebook.defaults}:
        print(f"note: none of the chosen notebooks has the parameter {unused}", file=sys.stderr)
    run = RunState(title or run_folder.name, without_folders(parameters), pages=_pages(listed, run_folder))
    began = time.perf_counter()

    def save(state: str) -> None:
        run.state, run.seconds = state, time.perf_counter() - began
        write_record(run_folder / "records" / "run.json", "run", asdict(run), device=device)
        build_index(run_folder)
        link_pages(run_folder)

    save("running")
    try:
        with kernel_manager_class() as (manager, progress_file):
            for number, notebook in enumerate(notebooks, start=1):
                page = next(page for page in run.pages if page.name == notebook.name)
                name = f"notebook {number} of {len(notebooks)}, {notebook.name}"
                with _progress(notebook, name) as bar, _phases(bar, progress_file):
                    problems = _run_one(notebook, page, run, run_folder, parameters, manager, bar)
                done = f"{name}: {page.n_cells} cells in {page.seconds:.1f} s"
                print("\n    warning: ".join([done, *problems]), file=sys.stderr, flush=True)
                save("running")
    except CellFailed:
        save("stopped")
        raise
    except BaseException:
        save("interrupted")
        raise
    save("complete" if all(page.state == "done" for page in run.pages) else "partial")
    return run


def _pages(listed: Sequence[Notebook], run_folder: Path) -> list[PageState]:
    """What is there already (from an earlier call on the same run) stays; the rest is pending."""
    earlier = find_records(run_folder, "run")
    known = {page["name"]: PageState(**page) for record in earlier.values() for page in record["content"]["pages"]}
    return [known.get(n.name) or PageState(n.name, n.title) for n in listed]


def _run_one(
    notebook: Notebook,
    page: PageState,
    run: RunState,
    run_folder: Path,
    parameters: Mapping[str, Any],
    manager: type,
    bar: tqdm,
) -> list[str]:
    """Execute and export one notebook, keeping ``page`` up to date; raises CellFailed or what interrupted it.

    Returns what is wrong with its page.
    """
    given = {**parameters, "run": str(run_folder)}
    given = {name: value for name, value in given.items() if name in notebook.defaults}
    partial = run_folder / "notebooks" / f".{notebook.name}.partial.ipynb"
    partial.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    finished, failure = page.state == "done", None
    try:
        _execute(notebook.path, partial, given, manager, bar)
    except (PapermillExecutionError, DeadKernelError) as error:
        failure = error
    except BaseException:
        page.state = page.state if finished else "interrupted"
        partial.unlink(missing_ok=True)
        raise
    executed = _tidied(partial, notebook)
    partial.unlink(missing_ok=True)
    page.seconds = time.perf_counter() - began
    page.n_cells = _n_code_cells(executed)
    page.state, page.error, page.cell = (
        ("done", "", None) if failure is None else ("failed", *_where(executed, failure))
    )
    # A failure never takes the place of a page that an earlier run finished.
    stem = f"{notebook.name}-failed" if failure and finished else notebook.name
    page.file = f"{stem}.html"
    write_text(run_folder / "notebooks" / f"{stem}.ipynb", nbformat.writes(executed))
    problems = export_page(executed, run_folder / page.file, _page_context(page, run, run_folder))
    if failure is not None:
        raise CellFailed(page.name, _report(page, executed))
    _forget_failure(run_folder, notebook.name)
    return problems


def _progress(notebook: Notebook, name: str) -> tqdm:
    """A bar over the notebook's code cells, on a terminal alone."""
    cells = _n_code_cells(nbformat.read(notebook.path, as_version=4))
    shape = "{desc} {bar:12} {n_fmt}/{total_fmt} cells, {elapsed}{postfix}"
    return tqdm(total=cells, desc=name, bar_format=shape, leave=False, disable=None, file=sys.stderr)


@contextmanager
def _phases(bar: tqdm, file: Path) -> Iterator[None]:
    """Show beside the bar what the notebook's own bar says (``display.NotebookBar`` writes it to ``file``)."""
    done = threading.Event()

    def follow() -> None:
        while not done.wait(0.5):
            with suppress(OSError):
                bar.set_postfix_str(file.read_text(encoding="utf-8"))

    follower = threading.Thread(target=follow, daemon=True)
    if not bar.disable:
        follower.start()
    try:
        yield
    finally:
        done.set()
        if follower.is_alive():
            follower.join()
        file.unlink(missing_ok=True)


def _execute(source: Path, target: Path, parameters: dict[str, Any], manager: type, bar: tqdm) -> None:
    def cell_starts(cell: NotebookNode, cell_index: int) -> None:
        if _is_own_code(cell):
            bar.update()

    for library in ("papermill", "asyncio"):  # what they say of a failure or an interrupt is said here in one line
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            execute_notebook(
                source,
                target,
                parameters,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                kernel_manager_class=manager,
                on_cell_start=cell_starts,
                start_timeout=180,
                shutdown_kernel="immediate",  # a busy kernel does not keep Ctrl-C waiting
                extra_arguments=["--log-level=50"],
            )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EROFS, errno.EACCES):
            raise
        raise NotWritten(f"cannot write {target}: {error.strerror}") from error


def _tidied(path: Path, notebook: Notebook) -> NotebookNode:
    """The executed notebook without papermill's own cells and without this machine's paths in its metadata."""
    executed = remove_error_markers(nbformat.read(path, as_version=4))
    about = executed.metadata.get("papermill", {})
    about.update(input_path=notebook.path.name, output_path=notebook.path.name)
    for key in ("parameters", "environment_variables"):
        about[key] = without_folders(about.get(key, {}))
    for cell in executed.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = "\n".join(["# Parameters", *(f"{k} = {v!r}" for k, v in about["parameters"].items())])
    return executed


def _n_code_cells(notebook: NotebookNode) -> int:
    return len(_code_cells(notebook))


def _code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells that the source has, as a reader counts them."""
    return [cell for cell in notebook.cells if _is_own_code(cell)]


def _is_own_code(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])


def _failed_cell(executed: NotebookNode) -> int:
    """Which code cell, counted from 1, raised, or was the last to start before the kernel died."""
    about = [cell.metadata.get("papermill", {}) for cell in _code_cells(executed)]
    raised = [number for number, cell in enumerate(about, start=1) if cell.get("exception")]
    started = [number for number, cell in enumerate(about, start=1) if cell.get("start_time")]
    return (raised or started[-1:] or [1])[0]


def _where(executed: NotebookNode, failure: Exception) -> tuple[str, int]:
    if isinstance(failure, PapermillExecutionError):
        return f"{failure.ename}: {failure.evalue}".rstrip(": "), _failed_cell(executed)
    return "the kernel died, most likely for want of memory", _failed_cell(executed)


def _page_context(page: PageState, run: RunState, run_folder: Path) -> PageContext:
    records = find_records(run_folder)
    answers = [r["content"] for r in records.values() if r["kind"] == "answer" and r["content"]["page"] == page.name]
    return PageContext(
        run_title=run.title,
        answer=answers[0]["answer"] if answers and page.state == "done" else "",
        failure=page.error,
        failed_cell=page.cell,
        footer=f"{run.title} · {page.seconds:.1f} s to run · {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
    )


def _forget_failure(run_folder: Path, name: str) -> None:
    (run_folder / f"{name}-failed.html").unlink(missing_ok=True)
    (run_folder / "notebooks" / f"{name}-failed.ipynb").unlink(missing_ok=True)


def _report(page: PageState, executed: NotebookNode) -> str:
    source = _code_cells(executed)[_failed_cell(executed) - 1].source.splitlines()
    head = "\n".join(f"    {line}" for line in source[:6]) + ("\n    ..." if len(source) > 6 else "")
    where = f"{page.name} stopped at code cell {page.cell} of {page.n_cells} after {page.seconds:.1f} s"
    return f"{where}\n{head}\n{page.error}"


class _ThisPythonOnly(KernelSpecManager):
    progress_file = Path()

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        environment = {"MMREC_PROGRESS": str(self.progress_file)}
        return KernelSpec(argv=argv, display_name="Python 3", language="python", env=environment)


@contextmanager
def kernel_manager_class() -> Iterator[tuple[type[AsyncKernelManager], Path]]:
    """A kernel manager class for nbclient, with a private folder for its connection files, and the file there to which
    its kernels write how far they are.

    Kernels talk over Unix sockets in that folder (over TCP on Windows, which has none), so that no other user of the
    machine can reach them.
    """
    folder = Path(tempfile.mkdtemp(prefix="mmrec-"))

    class ThisPython(AsyncKernelManager):
        def __init__(self, **options: Any) -> None:
            specs = _ThisPythonOnly()
            specs.progress_file = folder / "progress"
            options |= {"kernel_spec_manager": specs, "connection_file": str(folder / "kernel.json")}
            if sys.platform != "win32":
                options["transport"] = "ipc"
            super().__init__(**options)

    try:
        yield ThisPython, folder / "progress"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
