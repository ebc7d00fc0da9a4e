"""The door to a checkout of MMRec: any of its models, by its own configuration, data set and loader.

MMRec reads its settings, interactions, features and user graph from files; it finds them in a temporary folder, so that
nothing is written to the checkout or to the data set. See ``compat`` for what today's libraries no longer have.
"""

import ast
import contextlib
import importlib
import os
import re
import shutil
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrec_helpers.config import InputError, check_at_least, choose, resolve_device
from mmrec_helpers.data import DataSource, Interactions, write_mmrec
from mmrec_helpers.data.mmrec_files import COLUMNS, FEATURE_FILES
from mmrec_helpers.mmrec.compat import Compatibility
from mmrec_helpers.mmrec.user_graph import USER_GRAPH_FILE, write_user_graph

SEED = 999  # MMRec's own


class Batches:
    """MMRec's training loader for a model: each iteration is an epoch of its batches, drawn as MMRec draws them.

    supplied  what the model's code expected and today's libraries lack, in plain words, as far as it was needed yet
    config    MMRec's configuration object, with the values that the model was built with
    datasets  MMRec's data set, and its training, validation and test part
    """

    def __init__(self, loader: Any, config: Any, compatibility: Compatibility, datasets: tuple[Any, ...]) -> None:
        self.config, self.datasets = config, datasets
        self.loader, self._compatibility = loader, compatibility

    @property
    def supplied(self) -> tuple[str, ...]:
        return tuple(self._compatibility.used)

    @property
    def trains(self) -> bool:
        """Whether the model has a training step at all (``req_training`` of its settings)."""
        return self.config["req_training"] is not False

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Tensor]:
        self.loader.pr = 0
        return iter(self.loader)


@dataclass(frozen=True)
class Checkout:
    """A checkout of MMRec, as ``open_checkout`` returns it: its src folder, and the names of its models."""

    source: Path
    models: tuple[str, ...]

    def build(
        self,
        name: str,
        dataset: str | Path | DataSource | Interactions,
        *,
        visual: str = "",
        textual: str = "",
        scale: float = 1.0,
        batch_size: int | None = None,
        device: torch.device | str = "auto",
        seed: int = SEED,
        settings: Mapping[str, Any] | None = None,
        beside: str | Path = "",
    ) -> tuple[Any, Batches]:
        """A model with MMRec's settings for it, ready for its first epoch, and its batches.

        name        as in ``models``
        dataset     a folder in MMRec's layout, a preset's name, a DataSource, or Interactions
        visual, textual, scale  as DataSource has them
        batch_size  None for MMRec's own (2048)
        seed        of parameters, order and negatives; a preset is generated with seed 0
        settings    in place of MMRec's; of a setting that MMRec searches, the first value is taken
        beside      a folder whose other files (``user_graph_dict.npy``, ...) are taken too; "" for the data set's own

        ``model.calculate_loss(batch)`` is MMRec's own, and so are the draws: with the same seed and settings the first
        epoch is that of MMRec's ``main``. Before each further one MMRec calls ``model.pre_epoch_processing()``.
        Raises InputError for an unknown model or setting, and saying what is missing where it cannot be built.

            mmrec = open_checkout("../MMRec")
            model, batches = mmrec.build("FREEDOM", "baby", scale=0.1, device="cpu")
            loss = model.calculate_loss(next(iter(batches)))
        """
        own = {"train_batch_size": batch_size} if batch_size is not None else {}
        check_at_least("build", 1, **own)
        source = _source_of(dataset, visual, textual, scale)
        with self.built(name, source, device, seed, own | dict(settings or {}), beside, ready=True) as built:
            return built

    @contextlib.contextmanager
    def built(
        self,
        name: str,
        source: DataSource | Interactions,
        device: torch.device | str,
        seed: int,
        settings: Mapping[str, Any],
        beside: str | Path = "",
        ready: bool = False,
    ) -> Iterator[tuple[Any, Batches]]:
        """What ``build`` builds, for a block in which MMRec's code runs and finds its files; ready for the first epoch,
        or ``pre_epoch_processing`` is yet to come, as MMRec's trainer has it."""
        choose("model", name, self.models)
        check_at_least("build", 0, seed=seed)
        data = source if isinstance(source, Interactions) else source.open()
        compatibility = Compatibility(self.source, resolve_device(device))
        compatibility.building = True
        with tempfile.TemporaryDirectory() as folder, _working_in(Path(folder), self.source), compatibility:
            try:
                with contextlib.redirect_stdout(None):
                    files = _write_inputs(Path(folder), beside_of(source, beside), data, self.needs_users(name))
                    built = self._build(name, files, dict(settings), data, seed, compatibility)
                    if ready:
                        built[0].pre_epoch_processing()
            except InputError:
                raise
            except Exception as error:
                why = self.failure(error, data).replace(f"{folder}{os.sep}", "")
                raise InputError(f"{name} cannot be built on {data.name}: {why}") from error
            compatibility.building = False
            yield built

    def needs_users(self, name: str) -> bool:
        """Whether a model reads the user graph."""
        return "user_graph_dict_file" in (self.source / f"models/{name.lower()}.py").read_text(encoding="utf-8")

    def configuration(self, name: str, dataset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """MMRec's own settings for a model on a data set of that name; InputError for an unknown model, and for a name
        in ``settings`` that nothing in the checkout reads."""
        choose("model", name, self.models)
        compatibility = Compatibility(self.source, torch.device("cpu"))
        with tempfile.TemporaryDirectory() as folder, _working_in(Path(folder), self.source), compatibility:
            config = importlib.import_module("utils.configurator").Config(name, dataset, {"use_gpu": False})
        self._check_settings(settings, config)
        return config.final_config_dict

    def failure(self, error: Exception, data: Interactions | None = None) -> str:
        """What went wrong in the checkout's own code, where, and which modality may be what it lacks."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if self.source in Path(frame.filename).parents]
        place = f" ({Path(own[-1].filename).relative_to(self.source)}, line {own[-1].lineno})" if own else ""
        absent = [m for m in FEATURE_FILES if data is not None and m not in data.features]
        lacks = f"; the data set has no {' and no '.join(absent)} features" if absent else ""
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}{place}{lacks}"

    def _build(
        self,
        name: str,
        files: Mapping[str, Any],
        settings: dict[str, Any],
        data: Interactions,
        seed: int,
        compatibility: Compatibility,
    ) -> tuple[Any, Batches]:
        """What MMRec's ``quick_start`` does before training."""
        load, device = importlib.import_module, compatibility.device
        config = load("utils.configurator").Config(name, files["dataset"], dict(files))
        self._check_settings(settings, config)
        for key, value in [(key, config[key]) for key in config["hyper_parameters"]]:
            config[key] = value[0] if isinstance(value, list) and value else value
        for key, value in {**settings, "device": device, "seed": seed}.items():
            config[key] = value
        every = load("utils.dataset").RecDataset(config)
        if every.item_num < data.n_items:
            compatibility.note("items after the last with an interaction, for which there are features")
            every.item_num = data.n_items
        parts = every.split()
        for part in parts:
            str(part)  # MMRec counts its interactions while it prints it
        train = parts[0]
        batch_size = config["train_batch_size"]
        loader = load("utils.dataloader").TrainDataLoader(config, train, batch_size=batch_size, shuffle=True)
        load("utils.utils").init_seed(seed)
        loader.pretrain_setup()
        cls = compatibility.methods_within(load("utils.utils").get_model(name))
        return cls(config, loader).to(device), Batches(loader, config, compatibility, (every, *parts))

    def _check_settings(self, settings: Mapping[str, Any], config: Any) -> None:
        read = re.compile(r"config\[['\"](\w+)['\"]\]")
        texts = [path.read_text(encoding="utf-8") for path in self.source.rglob("*.py")] if settings else []
        known = {*config.final_config_dict, *(key for text in texts for key in read.findall(text))}
        for key in settings:
            choose("setting of MMRec", key, sorted(known))


def open_checkout(path: str | Path) -> Checkout:
    """A checkout of MMRec or of a fork (its root, or its ``src`` folder); InputError if it is none.

    open_checkout("../MMRec").models  # ("BM3", "BPR", "DAMRS", ...)
    """
    for source in (Path(path) / "src", Path(path)):
        if (source / "utils" / "configurator.py").is_file() and (source / "models").is_dir():
            names = [_class_in(file) for file in sorted((source / "models").glob("*.py"))]
            return Checkout(source.resolve(), tuple(sorted(filter(None, names), key=str.lower)))
    raise InputError(f"{path} is no checkout of MMRec: expected src/utils/configurator.py and src/models in it")


def _class_in(file: Path) -> str:
    """The class that MMRec finds in a file of ``models``: the one whose name in lower case is the file's."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    return next((name for name in classes if name.lower() == file.stem.lower()), "")


def _source_of(dataset: Any, visual: str, textual: str, scale: float) -> DataSource | Interactions:
    if isinstance(dataset, (Interactions, DataSource)):
        return dataset
    return DataSource(str(dataset), visual, textual, scale=scale)


@contextlib.contextmanager
def _working_in(folder: Path, source: Path) -> Iterator[None]:
    """Work where MMRec finds its settings files and may leave what it likes."""
    if (source / "configs").is_dir():
        shutil.copytree(source / "configs", folder / "configs")
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def beside_of(source: DataSource | Interactions, beside: str | Path = "") -> list[Path]:
    """The files that a model may read beside interactions and features: of ``beside``, or the data set's own folder."""
    own = source.dataset if isinstance(source, DataSource) and not source.is_preset else ""
    used = (source.visual, source.textual) if isinstance(source, DataSource) else ()
    files = Path(beside or own).glob("*.npy") if beside or own else ()
    return sorted(file for file in files if file.name not in used)


def _write_inputs(folder: Path, beside: list[Path], data: Interactions, needs_users: bool) -> dict[str, Any]:
    """The data set as MMRec reads it, with the files beside it; returns the settings that name the files."""
    place = write_mmrec(data, folder / data.name)
    (interactions,) = place.glob("*.inter")
    for file in beside:
        if not (place / file.name).exists():
            shutil.copyfile(file, place / file.name)
    if needs_users and not (place / USER_GRAPH_FILE).exists():
        write_user_graph(data, place)
    return {
        "dataset": place.name,
        "data_path": f"{folder}{os.sep}",
        "inter_file_name": interactions.name,
        **dict(zip(("USER_ID_FIELD", "ITEM_ID_FIELD", "inter_splitting_label"), COLUMNS)),
        "field_separator": "\t",
        "vision_feature_file": FEATURE_FILES["visual"],
        "text_feature_file": FEATURE_FILES["textual"],
        "user_graph_dict_file": USER_GRAPH_FILE,
        "filter_out_cod_start_users": True,
        "use_gpu": False,  # MMRec would set CUDA_VISIBLE_DEVICES for the whole process; the device is set afterwards
    }


class OwnStep(nn.Module):
    """An MMRec object as something that trains like this package's models: ``loss(batch)``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def loss(self, batch: Tensor) -> Tensor:
        losses = self.model.calculate_loss(batch.clone())  # a clone: DRAGON changes its batch
        return losses.sum() if isinstance(losses, Tensor) else sum(losses)
