"""The whole collection, run once on a tenth of the embedded data set for all tests that read what it leaves."""

import pytest

SMALL = {"dataset": "embedded", "scale": 0.1, "device": "cpu", "repeats": 3, "epochs": 1, "batch_size": 512}


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The folder of the run: pages and records."""
    from mmrec_helpers.pages.collection import (
        find_notebooks,
        run_order,
    )  # which tests on the oldest libraries do without
    from mmrec_helpers.pages.runner import run_collection

    folder = tmp_path_factory.mktemp("run")
    run_collection(run_order(find_notebooks()), folder, SMALL, title="small", device="cpu")
    return folder
