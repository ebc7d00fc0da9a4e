"""MMRec's own GRCN and DRAGON objects, made from a checkout of MMRec for a data set at hand.

MMRec's constructors read a configuration, a data loader, and files; they get what they ask for, in a temporary folder.
"""

import contextlib
import copy
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array, coo_matrix
from torch import Tensor, nn

from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions
from mmrec_helpers.data.mmrec_files import FEATURE_FILES
from mmrec_helpers.mmrec.accelerate import accelerate, usable_on_cpu
from mmrec_helpers.models.graphs import UserGraph

CLASSES = {"GRCN": ("models.grcn", 3), "DRAGON": ("models.dragon", 2)}  # and MMRec's n_layers
_OWN_PACKAGES = ("models", "common", "utils")  # MMRec's top-level names under src/


class OwnStep(nn.Module):
    """An MMRec object as something that trains like this package's models: ``loss(batch)``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, batch: Tensor) -> Tensor:
        return self.model.calculate_loss(batch.clone()).sum()  # a clone: DRAGON changes its batch


@contextlib.contextmanager
def own_steps(
    checkout: str | Path, data: Interactions, seed: int = 0, device: torch.device | str = "cpu"
) -> Iterator[dict[str, nn.Module]]:
    """ "MMRec GRCN", "MMRec GRCN accelerated", "MMRec DRAGON", ...: steps of the checkout's own objects.

    Within the block the originals run on a CPU too (see ``usable_on_cpu``). Raises InputError if the checkout
    has no such models or they cannot be made.
    """
    models = make_models(checkout, data, seed, device)
    with contextlib.ExitStack() as stack:
        steps = {}
        for name, model in models.items():
            steps[f"MMRec {name}"] = OwnStep(model)
            steps[f"MMRec {name} accelerated"] = OwnStep(accelerate(copy.deepcopy(model)))
        for model in models.values():
            stack.enter_context(usable_on_cpu(model))
        yield steps


def make_models(
    checkout: str | Path, data: Interactions, seed: int = 0, device: torch.device | str = "cpu"
) -> dict[str, nn.Module]:
    """The checkout's GRCN (three routing iterations) and DRAGON with MMRec's settings, DRAGON's user graph drawn."""
    source = Path(checkout) / "src"
    for module, _ in CLASSES.values():
        file = source / f"{module.replace('.', '/')}.py"
        if not file.is_file():
            raise InputError(f"{checkout} is not a checkout of MMRec: expected {file}")
    models = {}
    with tempfile.TemporaryDirectory() as folder, _importable(source) as load:
        config = _write_inputs(Path(folder), data, device)
        for name, (module, n_layers) in CLASSES.items():
            torch.manual_seed(seed)
            np.random.seed(seed)
            try:
                own = getattr(load(module), name)(_Config(config, n_layers=n_layers), _Loader(data))
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                raise InputError(f"{checkout}: its {name} cannot be made for {data.name}: {reason}") from error
            models[name] = own.to(device)
            models[name].pre_epoch_processing()
    return models


class _Config(dict):
    """MMRec's configuration: None for what is not set."""

    def __missing__(self, _: str) -> None:
        return None


class _Loader:
    """What the models ask of MMRec's training data loader."""

    def __init__(self, data: Interactions) -> None:
        self.dataset = self
        self._data = data

    def get_user_num(self) -> int:
        return self._data.n_users

    def get_item_num(self) -> int:
        return self._data.n_items

    def inter_matrix(self, form: str = "coo") -> coo_array | coo_matrix:
        users, items = self._data.train
        shape = (self._data.n_users, self._data.n_items)
        return coo_matrix((np.ones(len(users), dtype=np.float32), (users, items)), shape=shape).asformat(form)


def _write_inputs(folder: Path, data: Interactions, device: torch.device | str) -> _Config:
    """Features and user graph as MMRec reads them; returns the configuration that names them."""
    for modality, features in data.features.items():
        np.save(folder / FEATURE_FILES[modality], features)
    stored = UserGraph.of(data)
    graph = {
        user: [neighbors[counts > 0].tolist(), counts[counts > 0].astype(np.float32).tolist()]
        for user, (neighbors, counts) in enumerate(zip(stored.neighbors, stored.counts))
    }
    np.save(folder / "user_graph_dict.npy", graph, allow_pickle=True)
    return _Config(
        USER_ID_FIELD="userID",
        ITEM_ID_FIELD="itemID",
        NEG_PREFIX="neg_",
        train_batch_size=2048,
        device=torch.device(device),
        end2end=False,
        is_multimodal_model=True,
        data_path=f"{folder.parent}{os.sep}",
        dataset=folder.name,
        inter_file_name=f"{folder.name}.inter",
        vision_feature_file=FEATURE_FILES["visual"],
        text_feature_file=FEATURE_FILES["textual"],
        user_graph_dict_file="user_graph_dict.npy",
        embedding_size=64,
        latent_embedding=64,
        feat_embed_dim=64,
        n_mm_layers=1,
        knn_k=10,
        mm_image_weight=0.1,
        aggr_mode="add",
        reg_weight=1e-3,
        use_checkpoint=False,
        use_fettle=False,
    )


@contextlib.contextmanager
def _importable(source: Path) -> Iterator[Any]:
    """Import from ``source`` inside the block; its modules are forgotten afterwards, so that no name is left taken."""

    def own(name: str) -> bool:
        return name.partition(".")[0] in _OWN_PACKAGES

    before: dict[str, ModuleType] = {name: sys.modules.pop(name) for name in list(sys.modules) if own(name)}
    sys.path.insert(0, str(source))
    importlib.invalidate_caches()
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(source))
        for name in [name for name in sys.modules if own(name)]:
            del sys.modules[name]
        sys.modules.update(before)
