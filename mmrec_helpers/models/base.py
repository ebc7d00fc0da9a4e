"""What all models share: scores, the sum of the loss, checks of the input, parameters by MMRec's names."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from mmrec_helpers.config import InputError, check_ids
from mmrec_helpers.data import Interactions
from mmrec_helpers.ops import GraphOps, make_ops

BRANCHES = {"visual": "v_gcn", "textual": "t_gcn"}  # MMRec's names of the modalities' submodules


class Recommender(nn.Module):
    """Users and items as rows of one representation; the score of a pair is the inner product of its rows.

    Subclasses give ``representation()`` and ``loss_terms(batch)``. A model lives on the device it was built for;
    moving it afterwards makes its operations again.
    """

    name = ""
    reference_needs_ops = False  # GRCN and DRAGON run PyG layers of their own in the reference backend
    ops: GraphOps  # missing where the reference backend does without

    def __init__(self, data: Interactions, settings: Any, backend: str, seed: int, device: torch.device) -> None:
        super().__init__()
        self.n_users, self.n_items = data.n_users, data.n_items
        self.settings, self.seed = settings, seed
        self.backend = backend
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self._graph = data.graph
        self._make_ops(device)

    def representation(self) -> Tensor:
        """A fresh forward pass: float (n_users + n_items, width), users first."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        return self.representation()

    def loss_terms(self, batch: Tensor) -> dict[str, Tensor]:
        """The named scalar terms whose sum is the loss. batch: int64 (3, B), see ``loss``."""
        raise NotImplementedError

    def loss(self, batch: Tensor) -> Tensor:
        """The scalar loss of a batch, int64 (3, B): user, positive item, negative item, items counted from 0.

        The batch is not changed. Raises InputError for another shape or type and, where the batch is in host memory,
        for ids outside the data set.
        """
        return functools.reduce(Tensor.add, self.loss_terms(batch).values())

    @torch.no_grad()
    def scores(self, users: Tensor | np.ndarray | list, representation: Tensor | None = None) -> Tensor:
        """(len(users), n_items): <user row, item row> for all items, from a fresh forward pass in evaluation mode.

        users (n,) are integers from 0. Pass ``representation`` to use one that is at hand (many blocks of users, one
        forward pass). No gradient. Raises InputError for users that do not exist.
        """
        users = self._checked_users(users)
        if representation is None:
            was_training = self.training
            self.eval()
            representation = self.representation()
            self.train(was_training)
        return representation[users] @ representation[self.n_users :].T

    def on_epoch_start(self, epoch: int) -> None:
        """Called by the trainer before each epoch (from 0); depends on nothing but the model's seed and the epoch."""

    def load_mmrec_state(self, state: Mapping[str, Tensor | np.ndarray]) -> None:
        """Copy in the values of ``state``: {MMRec's parameter name: tensor or array}, every parameter once.

        Raises InputError for a name that is missing or unknown and for another shape, before anything is changed.
        """
        kept = self.state_dict()
        own = {name: parameter for name, parameter in self.named_parameters() if name in kept}
        given = {name: torch.as_tensor(value) for name, value in state.items()}
        for name in own:
            if name not in given:
                raise InputError(f"{self.name} state: {name} is missing: expected shape {tuple(own[name].shape)}")
        for name, value in given.items():
            if name not in own:
                raise InputError(f"{self.name} state: unknown name {name!r}: expected {', '.join(own)}")
            check_shape(self.name, name, value, tuple(own[name].shape))
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(given[name])

    @property
    def device(self) -> torch.device:
        return self._device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Recommender:
        super()._apply(fn, recurse)
        tensor = next(iter(self.parameters()), None)
        if tensor is not None and tensor.device != self._device:
            self._make_ops(tensor.device)
        return self

    def _make_ops(self, device: torch.device) -> None:
        self._device = device
        if self.backend != "reference" or self.reference_needs_ops:
            self.ops = make_ops(self.backend, self._graph, device)

    def _checked_users(self, users: Tensor | np.ndarray | list) -> Tensor:
        users = torch.as_tensor(users)
        if users.dim() != 1 or users.dtype.is_floating_point or users.dtype == torch.bool:
            raise InputError(f"users have shape {tuple(users.shape)} and type {users.dtype}: expected integers (n,)")
        check_ids("users", users, self.n_users)
        return users.to(self._device, torch.int64)

    def _checked_batch(self, batch: Tensor) -> Tensor:
        if not isinstance(batch, Tensor) or batch.dim() != 2 or batch.shape[0] != 3 or batch.shape[1] == 0:
            given = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
            raise InputError(f"batch is {given}: expected a tensor (3, B): users, positive items, negative items")
        if batch.dtype not in (torch.int64, torch.int32):
            raise InputError(f"batch has type {batch.dtype}: expected int64")
        if batch.device.type == "cpu":
            check_ids("batch: users", batch[0], self.n_users)
            check_ids("batch: items", batch[1:], self.n_items)
        return batch.to(self._device, torch.int64)

    def _autocast(self) -> torch.autocast:
        """The autocast context of the loss; does nothing without ``mixed_precision``."""
        precision = self.settings.mixed_precision
        dtype = getattr(torch, precision) if precision else None
        return torch.autocast(self._device.type, dtype=dtype, enabled=precision is not None)

    def _checkpointed(self, region: str, function: Callable, *inputs: Any) -> Any:
        """``function(*inputs)``; if checkpointing is set and gradients are wanted, nothing inside is kept, and the
        backward pass computes it again in a region of the given name. To be called inside that region."""
        if not (self.settings.checkpointing and self.training and torch.is_grad_enabled()):
            return function(*inputs)
        calls = itertools.count()

        def named_again(*inputs: Any) -> Any:
            with record_function(region) if next(calls) else nullcontext():
                return function(*inputs)

        return checkpoint(named_again, *inputs, use_reentrant=False)


class RawFeatures(nn.Module):
    """The raw item features (I, width) of one modality: the only copy in a model, shared with the data set on the CPU.

    They are data, not state: ``state_dict`` leaves them out. ``trainable`` None makes them a buffer; True or False a
    parameter named ``weight`` with or without ``requires_grad``, as MMRec's DRAGON registers them; no gradient ever
    arrives, since the forward pass reads them detached. With ``on_host`` they stay in host memory whatever device
    the model moves to, pinned if there is CUDA.
    """

    weight: Tensor  # (I, width)

    def __init__(self, values: np.ndarray, on_host: bool, trainable: bool | None = None) -> None:
        super().__init__()
        weight = torch.from_numpy(values)
        self.on_host = on_host
        if on_host and torch.cuda.is_available():
            weight = weight.pin_memory()
        if trainable is None:
            self.register_buffer("weight", weight, persistent=False)
        else:
            self.weight = nn.Parameter(weight, requires_grad=trainable)

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    def forward(self, device: torch.device) -> Tensor:
        """The features (I, width) on ``device``: copied there for every call if they are kept on the host."""
        if not self.on_host:
            return self.weight.detach()
        with record_function("copy.features"):
            return self.weight.detach().to(device, non_blocking=True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RawFeatures:
        if not self.on_host:
            return super()._apply(fn, recurse)
        dtype = fn(self.weight.detach()[:0]).dtype  # what fn does to types, without moving the features
        self.weight.data = self.weight.data.to(dtype)
        return self

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        """Nothing: see the class."""

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *_: Any) -> None:
        """Nothing: see the class."""


def check_shape(model: str, name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(value.shape) != expected:
        raise InputError(f"{model} state: {name} has shape {tuple(value.shape)}: expected {expected}")
