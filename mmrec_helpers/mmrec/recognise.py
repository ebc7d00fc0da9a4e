"""Recognise MMRec's GRCN and DRAGON objects by their structure: attribute and submodule names, types and shapes.

What is looked for is listed below as (path, what it should be). U users, I items, N = U + I, E training edges, d the
embedding width, M modalities. Settings that change what the model computes are checked where they are present.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmrec_helpers.config import InputError
from mmrec_helpers.data.graph import BipartiteGraph

BRANCHES = ("v_gcn", "t_gcn")
METHODS = ("forward", "calculate_loss", "full_sort_predict")
_RAW = {"v_gcn": "v_feat", "t_gcn": "t_feat"}  # None where the modality is not there
_ABSENT = object()


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 0)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "integer": _is_count,
    "number": lambda value: isinstance(value, (float, np.floating)) or _is_count(value),
    "method": callable,
    "module": lambda value: isinstance(value, nn.Module),
    "parameter": lambda value: isinstance(value, nn.Parameter),
    "float tensor": lambda value: isinstance(value, Tensor) and value.is_floating_point(),
    "integer tensor": lambda value: isinstance(value, Tensor) and value.dtype in (torch.int64, torch.int32),
    "sparse tensor": lambda value: isinstance(value, Tensor) and value.layout in (torch.sparse_coo, torch.sparse_csr),
}
_COMMON = {
    "n_users": "integer",
    "n_items": "integer",
    "edge_index": "integer tensor (2, edges)",
    "reg_weight": "number",
    **dict.fromkeys(METHODS, "method"),
}
_MODEL_PARTS = {
    "GRCN": _COMMON
    | {
        "id_gcn.id_embedding": "parameter (N, d)",
        "id_gcn.conv_embed_1": "module",
        "model_specific_conf": "parameter (N, M)",
    },
    "DRAGON": _COMMON
    | {
        "n_layers": "integer",
        "weight_u": "parameter (U, 2, 1)",
        "mm_adj": "sparse tensor (I, I)",
        "user_graph": "module",
        "pre_epoch_processing": "method",
    },
}
_BRANCH_PARTS = {
    "GRCN": {
        "preference": "parameter (U, d)",
        "MLP": "module",
        "conv_embed_1": "module",
        "features": "float tensor (I, width)",
        "num_routing": "integer",
    },
    "DRAGON": {"preference": "parameter (U, d)", "MLP": "module", "MLP_1": "module", "conv_embed_1": "module"},
}
MODELS = tuple(_MODEL_PARTS)
_ADDS = ("add", "sum")
_MODEL_SETTINGS: dict[str, dict[str, tuple]] = {
    "GRCN": {
        "dropout": (0,),
        "weight_mode": ("confid", "max", "mean"),
        "fusion_mode": ("concat",),
        "pruning": (True,),
        "id_gcn.has_norm": (True,),
        "id_gcn.has_act": (False,),
        "id_gcn.conv_embed_1.aggr": _ADDS,
        "id_gcn.conv_embed_2.aggr": _ADDS,
    },
    "DRAGON": {"construction": ("cat",)},
}
_BRANCH_SETTINGS: dict[str, dict[str, tuple]] = {
    "GRCN": {
        "has_norm": (True,),
        "has_act": (False,),
        "is_word": (False,),
        "conv_embed_1.self_loops": (False,),
        "conv_embed_1.aggr": _ADDS,
    },
    "DRAGON": {"conv_embed_1.aggr": _ADDS},
}


def recognise(model: Any) -> str:
    """ "GRCN" or "DRAGON"; raises InputError saying what was looked for and what is missing or set otherwise."""
    missing = {name: _missing(model, name) for name in _MODEL_PARTS}
    for name, parts in missing.items():
        if not parts:
            _check_settings(model, name)
            _check_shapes(model, name)
            return name
    sought = "; ".join(f"{name} by {', '.join(_sought(name))}, missing: {', '.join(missing[name])}" for name in missing)
    raise InputError(f"{type(model).__name__} is not one of MMRec's models that accelerate knows. Looked for {sought}")


def is_mmrec(model: Any) -> bool:
    """Whether it is an object of MMRec's kind: a module with its methods and its numbers of users and items."""
    counts = (getattr(model, name, None) for name in ("n_users", "n_items"))
    return isinstance(model, nn.Module) and all(map(_is_count, counts)) and all(hasattr(model, m) for m in METHODS)


def branches(model: Any) -> list[str]:
    """The modalities' submodules that are in use, visual first."""
    present = [name for name in BRANCHES if _lookup(model, name) is not _ABSENT]
    return [name for name in present if getattr(model, _RAW[name], _ABSENT) is not None]


def raw_features(model: Any, branch: str) -> Tensor:
    """The raw item features (I, width) of a modality: GRCN keeps them in the submodule, DRAGON in the model."""
    features = _lookup(getattr(model, branch), "features")
    return getattr(model, _RAW[branch]) if features is _ABSENT else features


def training_graph(model: Any) -> BipartiteGraph:
    """The edges of ``edge_index``, each once, whichever way they are given; raises InputError for other edges."""
    edges = model.edge_index.detach().cpu().numpy()
    if (edges[0] < model.n_users).any() and (edges[1] < model.n_users).any():  # both directions: DRAGON
        edges = edges[:, edges[0] < model.n_users]
    users, items = edges if edges[0, 0] < model.n_users else edges[::-1]
    n_nodes = model.n_users + model.n_items
    if not (users.min() >= 0 and users.max() < model.n_users <= items.min() and items.max() < n_nodes):
        raise InputError(
            f"edge_index holds edges {users.min()} to {users.max()} with {items.min()} to {items.max()}: expected "
            f"users 0 to {model.n_users - 1} with items {model.n_users} to {n_nodes - 1}"
        )
    return BipartiteGraph.from_pairs(np.stack((users, items - model.n_users)), int(model.n_users), int(model.n_items))


def _lookup(model: Any, path: str) -> Any:
    for name in path.split("."):
        model = getattr(model, name, None)
    return _ABSENT if model is None else model


def _parts(model: Any, kind: str) -> dict[str, str]:
    """All that a model of this kind must have, with the parts of the modalities in use: path to what it should be."""
    parts = dict(_MODEL_PARTS[kind])
    for branch in branches(model):
        parts |= {f"{branch}.{path}": what for path, what in _BRANCH_PARTS[kind].items()}
        if kind == "DRAGON":
            parts[_RAW[branch]] = "float tensor (I, width)"
    return parts


def _missing(model: Any, kind: str) -> list[str]:
    missing = []
    for path, what in _parts(model, kind).items():
        value, (name, dimensions) = _lookup(model, path), _kind_and_shape(what)
        if not _KINDS[name](value) or (dimensions and value.dim() != len(dimensions)):
            missing.append(path)
    return missing if branches(model) else [*missing, "v_gcn or t_gcn"]


def _kind_and_shape(what: str) -> tuple[str, list[str]]:
    """ "parameter (N, d)" -> "parameter", ["N", "d"]."""
    name, _, shape = what.rstrip(")").partition(" (")
    return name, shape.split(", ") if shape else []


def _sought(kind: str) -> list[str]:
    """What makes a model one of this kind, as "path (what it should be)"."""
    own = [f"{path} ({what})" for path, what in _MODEL_PARTS[kind].items() if path not in METHODS]
    return [*own, f"v_gcn or t_gcn with {', '.join(_BRANCH_PARTS[kind])}"]


def _check_settings(model: Any, kind: str) -> None:
    settings = dict(_MODEL_SETTINGS[kind])
    for branch in branches(model):
        settings |= {f"{branch}.{path}": values for path, values in _BRANCH_SETTINGS[kind].items()}
    for path, known in settings.items():
        value = _lookup(model, path)
        if value is not _ABSENT and value not in known:
            raise InputError(f"{kind}: {path} is {value!r}: accelerate expects {' or '.join(map(repr, known))}")


def _check_shapes(model: Any, kind: str) -> None:
    n_users, n_items = model.n_users, model.n_items
    known = {"U": n_users, "I": n_items, "N": n_users + n_items, "M": len(branches(model)), "1": 1, "2": 2}
    for path, what in _parts(model, kind).items():
        _, dimensions = _kind_and_shape(what)
        if dimensions:
            shape = tuple(_lookup(model, path).shape)
            if 0 in shape or any(known.get(name, size) != size for name, size in zip(dimensions, shape)):
                expected = ", ".join(str(known.get(name, name)) for name in dimensions)
                raise InputError(f"{kind}: {path} has shape {shape}: expected ({expected})")
