"""pyproject.toml, constraints.txt, environment.yml, the imports, and what is installed agree."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
IMPORT_NAMES = {"bs4": "beautifulsoup4", "torch_geometric": "torch-geometric", "torch_tb_profiler": "torch-tb-profiler"}


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
                if name not in sys.stdlib_module_names and name not in ("mmrec_helpers", "conftest"):
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
