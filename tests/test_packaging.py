"""pyproject.toml, constraints.txt, environment.yml, the imports, and what is installed agree."""

import ast
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
IMPORT_NAMES = {
    "IPython": "ipython",
    "bs4": "beautifulsoup4",
    "jupyter_client": "jupyter-client",
    "torch_geometric": "torch-geometric",
    "torch_tb_profiler": "torch-tb-profiler",
}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def declared() -> dict[str, Requirement]:
    """Every requirement of pyproject.toml, the extras included, by normalised name."""
    lines = [*project()["dependencies"], *(r for extra in project()["optional-dependencies"].values() for r in extra)]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    entries = [line.partition("#")[0].strip() for line in lines]
    return {canonicalize_name(name): version for name, _, version in (e.partition("==") for e in entries if e)}


def third_party_imports(folder: Path) -> dict[str, str]:
    """Distribution name to one file that imports it."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in (n.split(".")[0] for n in names):
                if name not in sys.stdlib_module_names | {"tomllib"} and name not in ("mmrec_helpers", "conftest"):
                    found[canonicalize_name(IMPORT_NAMES.get(name, name))] = str(path.relative_to(folder))
    return found


def test_every_third_party_import_is_declared():
    known = declared()
    undeclared = {n: f for n, f in third_party_imports(ROOT / "mmrec_helpers").items() if n not in known}
    assert not undeclared


def test_what_the_core_imports_needs_no_extra():
    """The layers an MMRec user imports work without the notebooks' extra."""
    core = {canonicalize_name(Requirement(line).name) for line in project()["dependencies"]}
    layers = ("data", "ops", "models", "training", "mmrec")
    imported = {n: f for layer in layers for n, f in third_party_imports(ROOT / "mmrec_helpers" / layer).items()}
    assert {n: f for n, f in imported.items() if n not in core | {"triton"}} == {}


WITHOUT_THE_NOTEBOOKS_PACKAGES = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split()))  # importing any of these fails
from mmrec_helpers.cli import main
from mmrec_helpers.mmrec import accelerate, read_log
from mmrec_helpers.profiling import find_dead_work
small = ["--scale", "0.1", "--epochs", "1", "--device", "cpu", "--backend", "sparse", "--out", "trained"]
for command in (
    ["log", "GRCN.log"],
    ["data"],
    ["data", "synthesize", "embedded", "written", "--scale", "0.1"],
    ["data", "check", "written"],
    ["train", "grcn", *small],
    ["study", *small, "--variants", "popularity"],
):
    assert main(command) == 0, command
"""


def test_an_install_without_the_extra_serves_the_core(tmp_path):
    """``log``, ``data``, ``train``, ``study``, ``accelerate``, ``find_dead_work`` need no notebook package.

    jinja2 is left out: torch-geometric requires and imports it.
    """
    extra = {canonicalize_name(Requirement(line).name) for line in project()["optional-dependencies"]["notebooks"]}
    names = {distribution: name for name, distribution in IMPORT_NAMES.items()}
    blocked = " ".join(names.get(distribution, distribution) for distribution in sorted(extra - {"jinja2"}))
    assert {"matplotlib", "IPython", "nbformat", "papermill", "bs4"} <= set(blocked.split())
    stamp = "Mon 05 Jan 2026 10:00:00 INFO "
    log = ["██Model: \tGRCN", "██Dataset: \tbaby", "epoch 0 training [time: 8.50s, train loss: 12.5000]"]
    (tmp_path / "GRCN.log").write_text("".join(f"{stamp}{line}\n" for line in log), encoding="utf-8")
    command = [sys.executable, "-c", WITHOUT_THE_NOTEBOOKS_PACKAGES, blocked]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "trained" / "records" / "training-grcn.json").is_file()


def test_an_undeclared_import_is_found(tmp_path):
    (tmp_path / "module.py").write_text("import os\nimport bs4\nfrom leftpad.core import pad\n")
    assert third_party_imports(tmp_path) == {"beautifulsoup4": "module.py", "leftpad": "module.py"}


def test_every_pin_lies_in_the_declared_range():
    known = declared()
    outside = {n: v for n, v in pins().items() if n in known and not known[n].specifier.contains(v, prereleases=True)}
    assert not outside


def test_every_declared_package_is_pinned():
    """triton alone is left to torch, whose CUDA builds want their own."""
    assert {"mmrec-helpers", "triton"} >= declared().keys() - pins().keys()


def test_pins_resolve_everywhere():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.search(r"^(triton|nvidia)|\+|://|@", line)]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines if line)


def test_installed_versions_are_the_pinned_ones():
    different = {}
    for name, pinned in pins().items():
        try:
            installed = Version(metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
        if installed.public != Version(pinned).public:
            different[name] = f"{installed} installed, {pinned} pinned"
    if different.keys() & {"torch", "torch-geometric"}:
        pytest.skip(f"not the environment of constraints.txt: {different}")
    assert not different


def test_conda_installs_the_same_environment():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python = next(d for d in environment["dependencies"] if isinstance(d, str) and d.startswith("python="))
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert Version(python.partition("=")[2]) in Requirement(f"python{project()['requires-python']}").specifier
    assert pip == ["-c constraints.txt", "-e .[test]"]


def test_make_installs_the_same_environment():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert '-c constraints.txt -e ".[test]"' in makefile


def test_data_files_of_the_package_are_packaged():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "mmrec_helpers"
    ]
    files = [p for p in (ROOT / "mmrec_helpers").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    left_out = [p.name for p in files if p.suffix != ".py" and f"**/*{p.suffix}" not in patterns]
    assert not left_out
