"""Whether two runs from the same state come to the same: their losses and gradients, up to rounding."""

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

import torch
from torch import Tensor

from mmrec_helpers.config import InputError
from mmrec_helpers.profiling.dead_work.interventions import Call, Experiment, Outcome
from mmrec_helpers.profiling.nested_tensors import Replace, has_scale, noise, same

# Differences up to so many epsilons of a tensor's type, relative to the tensor's largest entry, are rounding. For types
# coarser than float32 its epsilon counts: with their own, all work that is small would pass as rounding.
_ROUNDING_EPS = 4
_COARSEST_EPS = torch.finfo(torch.float32).eps
_UNREPEATABLE = 1e-3  # runs from the same state that differ by more than this cannot be compared


class Comparison:
    """Reference runs of all batches, and what interventions change beside them.

    outcomes      a reference run of each batch
    unrepeatable  why runs cannot be compared, or None
    rounding      see ``find_dead_work``

    Raises InputError for a loss that is not finite.
    """

    def __init__(self, experiment: Experiment, batches: list[Any], rounding: float | None) -> None:
        self.experiment, self.batches, self.rounding = experiment, batches, rounding
        self.outcomes: list[Outcome] = []
        self.unrepeatable: str | None = None
        self._references: dict[tuple[int, int, float], list[Outcome]] = {}
        self._noise_level = 0.0
        for number, batch in enumerate(batches):
            [reference] = self._references[number, 1, 0.0] = experiment.run(batch)
            if not reference.loss.isfinite():
                raise InputError(f"batch {number}: the loss is {reference.loss.item()}: expected a finite number")
            [again] = experiment.run(batch)
            level = max(apart(*pair) for pair in _side_by_side(reference, again))
            if reference.calls.keys() != again.calls.keys() or level > _UNREPEATABLE:
                self.unrepeatable = f"the loss is not repeatable: two equal runs of batch {number} differ"
            self._noise_level = max(self._noise_level, level)
            self.outcomes.append(reference)

    def differences(
        self,
        number: int,
        passes: int = 1,
        size: float = 1.0,
        retrained: float = 0.0,
        replaced: Mapping[Call, Replace] | None = None,
        values: Mapping[str, Replace] | None = None,
    ) -> list[float]:
        """The relative difference that an intervention makes in each pass of a batch; infinite for more than rounding.

        size       of the numbers that are put in: rounding grows with it
        retrained  size of random numbers that are first added to all trainable parameters, in the reference too
        replaced, values  see ``Experiment.run``
        """
        trained = [n for n, p in self.experiment.parameters.items() if p.requires_grad and can_vary(p) and retrained]
        others = {name: noise(retrained, around=1.0) for name in trained}
        if (number, passes, retrained) not in self._references:
            found = self.experiment.run(self.batches[number], passes=passes, values=others)
            self._references[number, passes, retrained] = found
        references = self._references[number, passes, retrained]
        loss = references[0].loss
        outcomes = self.experiment.run(
            self.batches[number],
            passes=passes,
            replaced=replaced,
            values=others | dict(values or {}),
            expected_loss=lambda other: apart(loss, other) <= size * self._allowed(loss),
        )
        return [self._difference(*pair, size) for pair in zip(references, outcomes)]

    def unchanged(self, numbers: list[int], **options: Any) -> bool:
        """Whether an intervention leaves the batches as they are; not if it ends in an error."""
        try:
            return all(inf not in self.differences(number, **options) for number in numbers)
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception:  # whatever the model does with values where it expects others: it has an effect
            return False

    def gets_gradient(self, name: str) -> bool:
        """Whether a gradient that is not zero arrives at a parameter on any batch."""
        grads = (outcome.grads.get(name) for outcome in self.outcomes)
        return any(gradient is not None and _size(gradient) > 0 for gradient in grads)

    def _difference(self, reference: Outcome, outcome: Outcome, size: float) -> float:
        largest = 0.0
        for before, after in _side_by_side(reference, outcome):
            difference = apart(before, after)
            allowed = size * self._allowed(before if after is None else after)
            largest = max(largest, difference if difference <= allowed else inf)
        return largest

    def _allowed(self, tensor: Tensor | None) -> float:
        eps = min(torch.finfo(tensor.dtype).eps, _COARSEST_EPS) if tensor is not None and has_scale(tensor) else 0.0
        return max(_ROUNDING_EPS * eps if self.rounding is None else self.rounding, 4 * self._noise_level)


def can_vary(parameter: Tensor) -> bool:
    """Whether random numbers can be added: ``can_vary(torch.ones(2))``."""
    return parameter.layout == torch.strided and has_scale(parameter)


def _side_by_side(reference: Outcome, outcome: Outcome) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """The losses of two runs, and their gradients by parameter (an outcome without gradients has only its loss)."""
    yield reference.loss, outcome.loss
    for name, gradient in reference.grads.items() if outcome.complete else ():
        yield gradient, outcome.grads.get(name)


def apart(left: Tensor | None, right: Tensor | None) -> float:
    """Largest difference over the largest entry of ``left``; no gradient counts as zeros; infinite where NaN."""
    if left is None or right is None:
        other = right if left is None else left
        return 0.0 if other is None or not _size(other) else float("inf") if left is None else 1.0
    left, right = _dense(left), _dense(right)
    if same(left, right):
        return 0.0
    largest, difference = _size(left), _size(left - right)
    return difference / largest if largest > 0 and difference == difference else inf


def _size(tensor: Tensor) -> float:
    return float(_dense(tensor).abs().max()) if tensor.numel() else 0.0


def _dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.layout != torch.strided else tensor
