"""Each layer imports only from layers above it."""

import ast
from pathlib import Path

import pytest

import mmrec_helpers

PACKAGE = Path(mmrec_helpers.__file__).parent
LAYERS = ["config", "files", "progress", "data", "ops", "models", "training", "profiling", "mmrec", "records"]
LAYERS += ["experiments", "claims", "plots", "pages", "cli"]
# Layers that must not know others which lie above them: instruments work on any torch module, drawing on any frame.
BLIND = {
    "profiling": ("data", "ops", "models", "training"),
    "plots": tuple(layer for layer in LAYERS if layer not in ("config", "plots")),
}


def violations(package: Path, layers: list[str]) -> list[str]:
    """Imports from a layer below one's own, and modules that belong to no layer, as "file:line what"."""
    found = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        layer = inside.parts[0].removesuffix(".py")
        if layer in ("__init__", "__main__"):
            continue
        if layer not in layers:
            found.append(f"{inside}:1 belongs to no layer")
            continue
        for line, target in imported_layers(path, package):
            if target not in layers[: layers.index(layer) + 1] or target in BLIND.get(layer, ()):
                found.append(f"{inside}:{line} {layer} imports {target}")
    return found


def imported_layers(path: Path, package: Path) -> list[tuple[int, str]]:
    """Line and first-level module of every import of the package in a file, in functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = (package.name, *path.relative_to(package).parent.parts)
            base = here[: len(here) - node.level + 1]
            names = [".".join((*base, node.module or "", alias.name)).replace("..", ".") for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == package.name and len(parts) > 1 and not parts[1].startswith("__"):
                found.append((node.lineno, parts[1]))
    return found


def test_every_layer_imports_only_from_layers_above_it():
    assert violations(PACKAGE, LAYERS) == []


def test_the_package_root_imports_the_standard_library_alone():
    """So that the command line can answer ``--help`` without loading torch."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert imported <= {"os", "sys", "warnings"}


@pytest.mark.parametrize(
    ("statement", "target"),
    [
        ("from mmrec_helpers.models import build", "models"),
        ("import mmrec_helpers.models.grcn", "models"),
        ("from mmrec_helpers import models", "models"),
        ("from ..models import build", "models"),
        ("def late():\n    from mmrec_helpers.training import fit", "training"),
    ],
)
def test_an_import_from_below_is_found(tmp_path, statement, target):
    package = tmp_path / "mmrec_helpers"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "data" / "bad.py").write_text(statement + "\n")
    (package / "data" / "good.py").write_text("from mmrec_helpers.config import InputError\nfrom . import bad\n")
    found = violations(package, LAYERS)
    assert [entry.partition(" ")[2] for entry in found] == [f"data imports {target}"]


def test_an_instrument_that_imports_a_model_is_found(tmp_path):
    package = tmp_path / "mmrec_helpers"
    (package / "profiling").mkdir(parents=True)
    (package / "profiling" / "bad.py").write_text("def late():\n    from mmrec_helpers.models import build\n")
    assert violations(package, LAYERS) == ["profiling/bad.py:2 profiling imports models"]


def test_a_module_of_no_layer_is_found(tmp_path):
    package = tmp_path / "mmrec_helpers"
    package.mkdir()
    (package / "utils.py").write_text("")
    assert violations(package, LAYERS) == ["utils.py:1 belongs to no layer"]
