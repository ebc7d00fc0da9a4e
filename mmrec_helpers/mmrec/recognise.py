"""Recognise MMRec's GRCN and DRAGON objects by their structure: attribute and submodule names, types and shapes.

What is looked for is listed below as (path, what it should be). U users, I items, N = U + I, E training edges, d the
embedding width, M modalities. Settings that change what the model computes are checked where they are present.
"""

from __future__ import annotations

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
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (float, np.floating)) or _is_count(value)


def _is_edges(value: Any) -> bool:
    integers = isinstance(value, Tensor) and value.dtype in (torch.int64, torch.int32)
    return integers and value.dim() == 2 and value.shape[0] == 2 and value.shape[1] > 0


def _is_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and value.is_floating_point()


def _is_parameter(dim: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, nn.Parameter) and value.dim() == dim


def _is_module(value: Any) -> bool:
    return isinstance(value, nn.Module)


def _is_square(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and value.layout in (torch.sparse_coo, torch.sparse_csr)


_COMMON = {
    "n_users": (_is_count, "integer"),
    "n_items": (_is_count, "integer"),
    "edge_index": (_is_edges, "integer tensor (2, edges)"),
    "reg_weight": (_is_number, "number"),
    **dict.fromkeys(METHODS, (callable, "method")),
}
_MODEL_PARTS = {
    "GRCN": _COMMON
    | {
        "id_gcn.id_embedding": (_is_parameter(2), "parameter (N, d)"),
        "id_gcn.conv_embed_1": (_is_module, "module"),
        "model_specific_conf": (_is_parameter(2), "parameter (N, M)"),
    },
    "DRAGON": _COMMON
    | {
        "n_layers": (_is_count, "integer"),
        "weight_u": (_is_parameter(3), "parameter (U, 2, 1)"),
        "mm_adj": (_is_square, "sparse tensor (I, I)"),
        "user_graph": (_is_module, "module"),
        "pre_epoch_processing": (callable, "method"),
    },
}
_BRANCH_PARTS = {
    "GRCN": {
        "preference": (_is_parameter(2), "parameter (U, d)"),
        "MLP": (_is_module, "module"),
        "conv_embed_1": (_is_module, "module"),
        "features": (_is_rows, "float tensor (I, width)"),
        "num_routing": (_is_count, "integer"),
    },
    "DRAGON": {
        "preference": (_is_parameter(2), "parameter (U, d)"),
        "MLP": (_is_module, "module"),
        "MLP_1": (_is_module, "module"),
        "conv_embed_1": (_is_module, "module"),
    },
}
_ADDS = ("add", "sum")
_MODEL_SETTINGS = {
    "GRCN": {
        "dropout": (0,),
        "weight_mode": ("confid",),
        "fusion_mode": ("concat",),
        "pruning": (True,),
        "id_gcn.has_norm": (True,),
        "id_gcn.has_act": (False,),
        "id_gcn.conv_embed_1.aggr": _ADDS,
        "id_gcn.conv_embed_2.aggr": _ADDS,
    },
    "DRAGON": {"construction": ("cat",)},
}
_BRANCH_SETTINGS = {
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
    told = "; ".join(f"{name} by {', '.join(_sought(name))}, missing: {', '.join(missing[name])}" for name in missing)
    raise InputError(f"{type(model).__name__} is not one of MMRec's models that accelerate knows. Looked for {told}")


def branches(model: nn.Module) -> list[str]:
    """The modalities' submodules that are in use, visual first."""
    present = [name for name in BRANCHES if _lookup(model, name) is not _ABSENT]
    return [name for name in present if getattr(model, _RAW[name], _ABSENT) is not None]


def raw_features(model: nn.Module, branch: str) -> Tensor:
    """The raw item features (I, width) of a modality: GRCN keeps them in the submodule, DRAGON in the model."""
    features = _lookup(getattr(model, branch), "features")
    return getattr(model, _RAW[branch]) if features is _ABSENT else features


def training_graph(model: nn.Module) -> BipartiteGraph:
    """The edges of ``edge_index``, each once, whichever way they are given; raises InputError for other edges."""
    edges = model.edge_index.detach().cpu().numpy()
    if (edges[0] < model.n_users).any() and (edges[1] < model.n_users).any():  # both directions: DRAGON
        edges = edges[:, edges[0] < model.n_users]
    users, items = edges if edges[0, 0] < model.n_users else edges[::-1]
    n_nodes = model.n_users + model.n_items
    fits = users.min() >= 0 and users.max() < model.n_users <= items.min() and items.max() < n_nodes
    if not fits:
        raise InputError(
            f"edge_index holds edges {users.min()} to {users.max()} with {items.min()} to {items.max()}: expected "
            f"users 0 to {model.n_users - 1} with items {model.n_users} to {n_nodes - 1}"
        )
    return BipartiteGraph.from_pairs(np.stack((users, items - model.n_users)), int(model.n_users), int(model.n_items))


def _lookup(model: Any, path: str) -> Any:
    for name in path.split("."):
        model = getattr(model, name, None)
    return _ABSENT if model is None else model


def _missing(model: Any, kind: str) -> list[str]:
    missing = [path for path, (fits, _) in _MODEL_PARTS[kind].items() if not fits(_lookup(model, path))]
    present = branches(model)
    for branch in present:
        parts = _BRANCH_PARTS[kind].items()
        missing += [f"{branch}.{path}" for path, (fits, _) in parts if not fits(_lookup(model, f"{branch}.{path}"))]
        if kind == "DRAGON" and not _is_rows(_lookup(model, _RAW[branch])):
            missing.append(_RAW[branch])
    return missing if present else [*missing, "v_gcn or t_gcn"]


def _sought(kind: str) -> list[str]:
    """What makes a model one of this kind, as "path (what it should be)"."""
    own = [f"{path} ({what})" for path, (_, what) in _MODEL_PARTS[kind].items() if path not in METHODS]
    return [*own, f"v_gcn or t_gcn with {', '.join(_BRANCH_PARTS[kind])}"]


def _check_settings(model: nn.Module, kind: str) -> None:
    settings = dict(_MODEL_SETTINGS[kind])
    for branch in branches(model):
        settings |= {f"{branch}.{path}": values for path, values in _BRANCH_SETTINGS[kind].items()}
    for path, known in settings.items():
        value = _lookup(model, path)
        if value is not _ABSENT and value not in known:
            raise InputError(f"{kind}: {path} is {value!r}: accelerate expects {' or '.join(map(repr, known))}")


def _check_shapes(model: nn.Module, kind: str) -> None:
    n_nodes, count = model.n_users + model.n_items, len(branches(model))
    rows = {f"{branch}.preference": (getattr(model, branch).preference, model.n_users) for branch in branches(model)}
    rows |= {f"{branch} features": (raw_features(model, branch), model.n_items) for branch in branches(model)}
    if kind == "GRCN":
        rows |= {
            "id_gcn.id_embedding": (model.id_gcn.id_embedding, n_nodes),
            "model_specific_conf": (model.model_specific_conf, n_nodes),
        }
        if model.model_specific_conf.shape[1] != count:
            shape = tuple(model.model_specific_conf.shape)
            raise InputError(f"GRCN: model_specific_conf has shape {shape}: expected ({n_nodes}, {count})")
    else:
        rows |= {"weight_u": (model.weight_u, model.n_users), "mm_adj": (model.mm_adj, model.n_items)}
    for path, (tensor, expected) in rows.items():
        if len(tensor) != expected:
            raise InputError(f"{kind}: {path} has {len(tensor)} rows: expected {expected}")
