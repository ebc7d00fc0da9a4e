import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions
from mmrec_helpers.training import NegativeSampler
from mmrec_helpers.training.sampling import epoch_generator
from tests.toy_model import toy_data


def by_hand():
    """Items 0..5; item 5 is never seen in training. User 0 has 0 and 2, user 1 has 1, 3 and 4, user 2 nothing."""
    return Interactions.from_arrays(3, 6, train=np.array([[1, 0, 1, 0, 1], [4, 2, 1, 0, 3]]))


def draw(data, user, n, seed=0):
    users = torch.full((n,), user)
    return NegativeSampler(data).negatives(users, epoch_generator(seed, 0)).numpy()


def test_negatives_are_exactly_the_items_that_can_be_drawn():
    assert set(draw(by_hand(), 0, 300)) == {1, 3, 4}
    assert set(draw(by_hand(), 1, 300)) == {0, 2}
    assert set(draw(by_hand(), 2, 300)) == {0, 1, 2, 3, 4}  # never item 5, which training has not seen


def test_an_epoch_holds_every_interaction_once_and_no_known_positive():
    data = toy_data()
    batches = list(NegativeSampler(data).batches(64, seed=3, epoch=1))
    assert [b.shape[1] for b in batches[:-1]] == [64] * (len(batches) - 1)
    assert 0 < batches[-1].shape[1] <= 64
    assert all(b.is_contiguous() and b.dtype == torch.int64 and b.shape[0] == 3 for b in batches)
    users, positives, negatives = torch.cat(batches, dim=1).numpy()
    known = set(zip(*data.train.tolist()))
    assert sorted(zip(users.tolist(), positives.tolist())) == sorted(known)
    assert not known & set(zip(users.tolist(), negatives.tolist()))
    rejected_nothing = set(zip(users.tolist(), np.random.default_rng(0).permutation(positives).tolist()))
    assert known & rejected_nothing  # control: drawing without looking does hit known positives


def test_negatives_are_uniform():
    data = toy_data()
    user = int(data.graph.user_degree.argmax())
    free = np.setdiff1d(np.unique(data.train[1]), data.train[1][data.train[0] == user])
    counts = np.bincount(draw(data, user, 40_000), minlength=data.n_items)[free]
    assert chisquare(counts).pvalue > 0.01
    by_popularity = np.random.default_rng(0).choice(data.train[1], size=40_000)
    control = np.bincount(by_popularity, minlength=data.n_items)[free]
    assert chisquare(control).pvalue < 1e-6  # control: the test sees a draw that is not uniform


def test_order_follows_from_seed_and_epoch():
    sampler = NegativeSampler(toy_data())
    first = sampler.epoch(seed=0, epoch=4)
    sampler.epoch(seed=0, epoch=5)
    torch.manual_seed(99)
    assert torch.equal(first, NegativeSampler(toy_data()).epoch(seed=0, epoch=4))
    assert not torch.equal(first, sampler.epoch(seed=0, epoch=5))
    assert not torch.equal(first, sampler.epoch(seed=1, epoch=4))


def test_a_user_with_every_seen_item_is_refused():
    data = Interactions.from_arrays(2, 9, train=np.array([[0, 0, 1], [3, 4, 3]]), name="full")
    with pytest.raises(InputError, match=r"full: user 0 has .* every one of the 2 items"):
        NegativeSampler(data)


def test_one_item_left_is_always_found():
    n = 3000
    train = np.stack([np.repeat([0, 1], [n - 1, 1]), np.append(np.delete(np.arange(n), 1234), 1234)])
    assert set(draw(Interactions.from_arrays(2, n, train=train), 0, 50)) == {1234}


def test_batch_size_is_checked():
    with pytest.raises(InputError, match="batch_size is 0"):
        next(NegativeSampler(toy_data()).batches(0))
