"""A model put back as it was: attributes, contents of parameters and buffers, gradients, random states."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

_REGISTRIES = ("_parameters", "_buffers", "_modules")


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put back, after the block, every module's attributes and registries, what parameters and buffers hold,
    parameters' .grad, and the random states of Python, NumPy and torch: ``with preserved(model): ...``."""
    tensors = [*model.parameters(), *model.buffers()]
    contents = [(tensor, tensor.detach().clone(), tensor.grad) for tensor in tensors]
    kept = [
        (vars(module), vars(module) | {name: dict(vars(module)[name]) for name in _REGISTRIES})
        for module in model.modules()
    ]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        for attributes, before in kept:
            _put_back(attributes, before)
        for tensor, content, gradient in contents:
            with torch.no_grad():
                if not torch.equal(tensor, content):  # an equal one keeps its version
                    tensor.copy_(content)
            tensor.grad = gradient
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        for index, state in enumerate(cuda):
            torch.cuda.set_rng_state(state, index)


def _put_back(attributes: dict[str, Any], kept: dict[str, Any]) -> None:
    registries = {name: attributes[name] for name in _REGISTRIES}  # the same dictionaries: others may hold them
    attributes.clear()
    attributes.update(kept)
    for name, registry in registries.items():
        registry.clear()
        registry.update(kept[name])
        attributes[name] = registry
