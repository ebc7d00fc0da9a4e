"""Where a data set comes from: one object that opens it, labels it, and records itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmrec_helpers.config import InputError
from mmrec_helpers.data.interactions import Interactions
from mmrec_helpers.data.mmrec_files import load_mmrec
from mmrec_helpers.data.presets import PRESETS, scaled_shape
from mmrec_helpers.data.synthetic import synthesize
from mmrec_helpers.files import dataset_label


@dataclass(frozen=True)
class DataSource:
    """A preset that is generated, or a folder in MMRec's layout.

    dataset          a preset's name, or a folder ("./tiktok" is a folder even if a preset has that name)
    visual, textual  feature files (.npy) inside that folder; "" for none
    scale            of a preset: 0.1 keeps a tenth of the users, items and interactions
    seed             of a preset; a folder has none

        data = DataSource("baby", scale=0.1).open()
        data = DataSource("../tiktok", visual="image_feat.npy", textual="audio_feat.npy").open()
    """

    dataset: str = "embedded"
    visual: str = ""
    textual: str = ""
    scale: float = 1.0
    seed: int = 0

    @property
    def is_preset(self) -> bool:
        return str(self.dataset) in PRESETS

    @property
    def label(self) -> str:
        """A short name, fit for a folder: the preset (with a scale that is not 1), or the last part of the path."""
        return dataset_label(self.dataset) + ("" if self.scale == 1 else f"-{self.scale:g}")

    @property
    def settings(self) -> dict[str, Any]:
        """What a record keeps: folders and files by their last part alone, which says enough of a machine."""
        texts = {name: getattr(self, name) for name in ("dataset", "visual", "textual")}
        return {name: dataset_label(text) if text else "" for name, text in texts.items()} | {"scale": self.scale}

    def absolute(self) -> DataSource:
        """The same data set from any working directory."""
        return self if self.is_preset else replace(self, dataset=str(Path(self.dataset).resolve()))

    def given(self) -> dict[str, Any]:
        """The fields that differ from their defaults: what a command line or a notebook has to be given."""
        return {name: value for name, value in asdict(self).items() if value != getattr(type(self)(), name)}

    def check(self) -> None:
        """Raise the InputError that ``open`` would, without generating a preset (a folder is read)."""
        if not self.is_preset:
            self.open()
            return
        for modality, file in (("visual", self.visual), ("textual", self.textual)):
            if file:
                raise InputError(
                    f"{modality} is {file!r}: expected none with the preset {self.dataset}, which has its own"
                )
        scaled_shape(self.dataset, self.scale)

    def open(self) -> Interactions:
        """Generate or read it. Raises InputError for a name that is neither a preset nor a folder, for a feature file
        or a scale given where it means nothing, and for what ``load_mmrec`` and ``synthesize`` refuse."""
        if self.is_preset:
            self.check()
            return synthesize(str(self.dataset), seed=self.seed, scale=self.scale)
        if not Path(self.dataset).is_dir():
            known = ", ".join(PRESETS)
            raise InputError(
                f"unknown data set {str(self.dataset)!r}: expected one of {known} or a folder in MMRec's layout"
            )
        if self.scale != 1:
            raise InputError(
                f"scale is {self.scale} with the folder {self.dataset}: expected 1, only a preset can be scaled"
            )
        return load_mmrec(self.dataset, visual=self.visual or None, textual=self.textual or None)
