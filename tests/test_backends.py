"""Attention block, evaluation and sampler by backend; and MMRec's own models beside the reference."""

import sys
import textwrap

import pytest
import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.experiments.backends import measure_backends
from mmrec_helpers.experiments.mmrec_steps import measure_mmrec_steps
from mmrec_helpers.experiments.steps import MeasureOptions
from mmrec_helpers.mmrec.checkout import make_models, own_steps
from tests.models_data import random_batch, small_data

OPTIONS = MeasureOptions(batch_size=64, repeats=2, warmup=1)
DATA = small_data()
CHECKOUT = {  # stand-ins with MMRec's constructors: they read the configuration, the loader and the files it names
    "common/base.py": """
        import os
        import numpy as np
        from mmrec_helpers.data import Interactions

        def interactions(config, loader):
            matrix = loader.inter_matrix(form="coo")
            folder = config["data_path"] + config["dataset"]
            files = {"visual": config["vision_feature_file"], "textual": config["text_feature_file"]}
            features = {m: np.load(os.path.join(folder, f)) for m, f in files.items()}
            users, items = loader.dataset.get_user_num(), loader.dataset.get_item_num()
            assert config["not there"] is None
            return Interactions.from_arrays(users, items, train=np.stack((matrix.row, matrix.col)), features=features)
        """,
    "models/grcn.py": """
        from common.base import interactions
        from tests import mmrec_objects

        class GRCN(mmrec_objects.GRCN):
            def __init__(self, config, dataset):
                super().__init__(interactions(config, dataset), n_layers=config["n_layers"], calls_cuda=True)
        """,
    "models/dragon.py": """
        import os
        import numpy as np
        from common.base import interactions
        from tests import mmrec_objects

        class DRAGON(mmrec_objects.DRAGON):
            def __init__(self, config, dataset):
                super().__init__(interactions(config, dataset), n_layers=config["n_mm_layers"], registers_result=True)
                path = os.path.join(config["data_path"] + config["dataset"], config["user_graph_dict_file"])
                self.user_graph_dict = np.load(path, allow_pickle=True).item()
        """,
}


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("MMREC_HELPERS_CACHE", "off")


@pytest.fixture
def checkout(tmp_path):
    for name, text in CHECKOUT.items():
        file = tmp_path / "MMRec" / "src" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    return tmp_path / "MMRec"


def test_mmrecs_own_objects_and_the_same_accelerated(checkout):
    with own_steps(checkout, DATA) as steps:
        assert list(steps) == ["MMRec GRCN", "MMRec GRCN accelerated", "MMRec DRAGON", "MMRec DRAGON accelerated"]
        batch = random_batch(DATA)
        before = batch.clone()
        losses = {name: step.loss(batch).item() for name, step in steps.items()}
        assert torch.equal(batch, before)
    for name in ("MMRec GRCN", "MMRec DRAGON"):
        assert losses[name] == pytest.approx(losses[f"{name} accelerated"], rel=1e-5)
    assert losses["MMRec GRCN"] != pytest.approx(losses["MMRec DRAGON"], rel=1e-2)


def test_a_checkout_leaves_no_names_behind(checkout):
    path, modules = list(sys.path), set(sys.modules)
    make_models(checkout, DATA)
    assert sys.path == path
    assert not {"models", "common"} & (set(sys.modules) - modules)


def test_no_checkout_is_refused(tmp_path, checkout):
    with pytest.raises(InputError, match=r"is not a checkout of MMRec: expected .*grcn\.py"):
        make_models(tmp_path, DATA)
    (checkout / "src" / "models" / "dragon.py").write_text("class DRAGON: pass\n")
    with pytest.raises(InputError, match=r"its DRAGON cannot be made for .*: TypeError"):
        make_models(checkout, DATA)


def test_the_parts_of_a_step_are_timed_by_backend():
    content = measure_backends(DATA, OPTIONS)
    rows = {(row["part"], row["backend"]): row for row in content["rows"]}
    assert {part for part, _ in rows} <= {"attention block", "evaluation"}
    assert {backend for _, backend in rows} == {"reference", "sparse", "fused"}
    assert all(row["ratio"]["rounds"] == 2 and row["median_ms"] > 0 for row in rows.values())
    reference, fused = (rows["attention block", backend]["peak_bytes"] for backend in ("reference", "fused"))
    assert reference > fused
    assert content["controls"]["attention block"]["noise"] is not None
    assert content["sampler_s"] > 0


def test_a_backend_that_cannot_run_is_left_out(monkeypatch):
    monkeypatch.setattr("mmrec_helpers.ops._fused_needs", lambda device: "numba")
    content = measure_backends(DATA, OPTIONS)
    assert [row["backend"] for row in content["left_out"]] == ["fused"]
    assert "numba" in content["left_out"][0]["reason"]


def test_mmrecs_own_models_beside_the_accelerated_and_the_reference(checkout):
    content = measure_mmrec_steps(DATA, OPTIONS, checkout)
    assert [row["model"] for row in content["rows"]] == ["GRCN", "DRAGON"]
    assert all(row["factor"]["rounds"] == 2 and row["own_peak_bytes"] > 0 for row in content["rows"])
    assert content["control"]["rounds"] == 2
    with pytest.raises(InputError, match="--mmrec is missing"):
        measure_mmrec_steps(DATA, OPTIONS)
