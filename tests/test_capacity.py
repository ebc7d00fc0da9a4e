"""How far one GPU goes: bytes of the formulas against counted ones, the largest workload, and what grows with what."""

from dataclasses import replace

import pytest
import torch

from mmrec_helpers.data import synthesize
from mmrec_helpers.experiments import capacity
from mmrec_helpers.experiments.roofline import workload_of
from mmrec_helpers.experiments.steps import step_runners
from mmrec_helpers.models import build
from mmrec_helpers.models.step_cost import held_bytes
from mmrec_helpers.ops.sparse import _narrow
from mmrec_helpers.profiling.memory import peak_bytes
from mmrec_helpers.training import NegativeSampler, TrainSettings

PUBLISHED = capacity.published_workload()


@pytest.fixture(scope="module")
def data():
    return synthesize("embedded", seed=0)


def test_the_sampler_holds_what_is_counted(data):
    sampler, edges = NegativeSampler(data), data.train.shape[1]
    held = [value for value in vars(sampler).values() if isinstance(value, torch.Tensor) and len(value) == edges]
    assert sum(value.nbytes for value in held) == capacity.SAMPLER_BYTES * edges
    assert sampler.epoch(0, 0).nbytes == capacity.EPOCH_BYTES * edges
    assert peak_bytes(lambda: sampler.epoch(0, 0)) == pytest.approx(capacity.SAMPLING_BYTES * edges, rel=0.05)


@pytest.mark.parametrize("name", ["grcn", "dragon"])
def test_the_reference_holds_what_is_counted(data, name):
    """Fused backends: interpreted_ops_cuda.py."""
    runner = step_runners({"": build(name, data, backend="reference")}, data, TrainSettings(batch_size=2048))[""]
    runner()
    kept = [*runner.model.parameters(), *runner.model.buffers()]
    kept += [value for state in runner.optimizer.state.values() for value in state.values()]
    parts = [part for one in kept for part in ((one._indices(), one._values()) if one.is_sparse else (one,))]
    found = sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}.values())
    assert held_bytes(name, workload_of(data, 2048)) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("name", capacity.KINDS)
def test_the_largest_fits_and_a_little_more_does_not(name):
    table = capacity.capacity_table(PUBLISHED).set_index(["memory_gb", "variant"])
    found = table.loc[(24, name)]
    for items_too, column in ((False, "interactions"), (True, "interactions_items_too")):
        sizes = [capacity.with_interactions(PUBLISHED, by * found[column], items_too) for by in (0.99, 1.01)]
        assert capacity.training_bytes(name, sizes[0]) < 24e9 < capacity.training_bytes(name, sizes[1])
    widths = [replace(PUBLISHED, embedding_dim=found["width"] + by) for by in (0, 1)]
    assert capacity.training_bytes(name, widths[0]) <= 24e9 < capacity.training_bytes(name, widths[1])
    assert table.loc[(141, name), "interactions"] > table.loc[(80, name), "interactions"] > found["interactions"]


def test_what_fits_nowhere_is_zero():
    heavy = replace(PUBLISHED, widths={"visual": 10**6})
    assert set(capacity.capacity_table(heavy)["interactions"]) == {0.0}


def test_users_and_items_grow_in_proportion():
    ten = capacity.with_interactions(PUBLISHED, 10 * PUBLISHED.n_edges)
    assert (ten.n_users, ten.n_items) == (10 * PUBLISHED.n_users, PUBLISHED.n_items)
    assert capacity.with_interactions(PUBLISHED, 10 * PUBLISHED.n_edges, True).n_items == 10 * PUBLISHED.n_items


def test_offsets_are_int32_only_where_every_entry_can_be_counted_in_it():
    pointer = torch.tensor([0, 2**31])
    for entries, kept in ((2**31, torch.int64), (2**31 - 1, torch.int32)):
        found = _narrow(pointer, torch.empty(entries, dtype=torch.int64, device="meta"))
        assert [part.dtype for part in found] == [kept, kept]
