"""One way in for notebooks and the command line: a preset's name or a folder."""

from __future__ import annotations

import os
from pathlib import Path

from mmrec_helpers.config import InputError
from mmrec_helpers.data.interactions import Interactions
from mmrec_helpers.data.mmrec_files import load_mmrec
from mmrec_helpers.data.presets import PRESETS
from mmrec_helpers.data.synthetic import synthesize


def open_dataset(
    dataset: str | os.PathLike,
    visual: str | os.PathLike | None = None,
    textual: str | os.PathLike | None = None,
    seed: int = 0,
    scale: float = 1.0,
) -> Interactions:
    """Generate the preset, or read the folder in MMRec's layout, that ``dataset`` names.

    A preset's name comes first; "./tiktok" is a folder even so. ``visual`` and ``textual`` are for folders (see
    ``load_mmrec``), where ``seed`` means nothing; ``scale`` is for presets (see ``synthesize``). Raises InputError for
    a name that is neither, and for a feature file or a scale given where it means nothing.
    """
    if str(dataset) in PRESETS:
        for modality, file in (("visual", visual), ("textual", textual)):
            if file not in (None, ""):
                raise InputError(
                    f"{modality} is {str(file)!r}: expected none with the preset {dataset}, which has its own"
                )
        return synthesize(str(dataset), seed=seed, scale=scale)
    if not Path(dataset).is_dir():
        raise InputError(
            f"unknown data set {str(dataset)!r}: expected one of {', '.join(PRESETS)} or a folder in MMRec's layout"
        )
    if scale != 1:
        raise InputError(f"scale is {scale} with the folder {dataset}: expected 1, only a preset can be scaled")
    return load_mmrec(dataset, visual=visual, textual=textual)
