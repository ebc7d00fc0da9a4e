"""A tensor that is computed when somebody needs it is that tensor to whoever reads it."""

import copy
import pickle

import numpy as np
import pytest
import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.mmrec.deferred import Deferred

LEFT, RIGHT = torch.arange(6.0).view(3, 2), torch.ones(3, 1)
EXPECTED = torch.cat((LEFT, RIGHT), dim=1)


def deferred(left=LEFT):
    calls = []

    def write():
        calls.append(1)
        return torch.cat((left, RIGHT), dim=1)

    return Deferred.of((3, 3), left, write), calls


def test_what_is_known_without_its_numbers_does_not_compute_them():
    tensor, calls = deferred()
    assert tensor.shape == (3, 3)
    assert (tensor.dim(), tensor.size(0), len(tensor), tensor.numel()) == (2, 3, 3, 9)
    assert tensor.dtype == torch.float32
    assert not tensor.requires_grad
    assert not calls


READERS = {
    "index": lambda tensor: tensor[:],
    "function": lambda tensor: torch.add(tensor, 0),
    "list": lambda tensor: torch.stack([tensor])[0],
    "method": lambda tensor: tensor.clone(),
    "numpy": lambda tensor: torch.from_numpy(np.asarray(tensor)),
    "data": lambda tensor: tensor.data,
    "copy": copy.deepcopy,
    "pickle": lambda tensor: pickle.loads(pickle.dumps(tensor)),
    "python": lambda tensor: torch.tensor(tensor.tolist()),
    "operator": lambda tensor: 1 * tensor,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_whoever_reads_it_gets_the_numbers_computed_once(read):
    tensor, calls = deferred()
    for _ in range(2):
        found = read(tensor)
        assert type(found) is torch.Tensor
        torch.testing.assert_close(found, EXPECTED, rtol=0, atol=0)
    assert calls == [1]
    assert "4." in repr(tensor)


def test_what_is_written_to_it_stays():
    tensor, _ = deferred()
    tensor[0, 0] = 7
    tensor.mul_(2)
    assert float(tensor[0, 0]) == 14


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_flow_though_it_was_read_without_them(mode):
    left = LEFT.clone().requires_grad_()
    tensor, calls = deferred(left)
    with mode():
        assert float(tensor.sum()) == float(EXPECTED.sum())
    (2 * tensor).sum().backward()
    assert tensor.requires_grad
    assert torch.equal(left.grad, torch.full((3, 2), 2.0))
    assert calls == [1]


def test_code_behind_torchs_functions_is_refused():
    class Behind(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad

    tensor, _ = deferred(LEFT.clone().requires_grad_())
    with pytest.raises(InputError, match="reached code that accelerate cannot follow"):
        Behind.apply(tensor).sum().backward()
