"""Products that are larger than their factors, over a number and exponentiated, as contrastive losses have them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmrec_helpers.mmrec.deferred import Deferred
from mmrec_helpers.mmrec.picked import MULTIPLY

_DIVIDE = {torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.divide, Tensor.__truediv__}
_EXPONENTIAL = {torch.exp, Tensor.exp}
LARGE = 4  # times as many numbers as either factor


class LargeProduct(Deferred):
    """left @ right, (n, d) and (d, m). A number that it is multiplied with goes to the smaller factor, and an
    exponential is taken in place: each saves a pass over (n, m) or two, forward and back.

    note  is told when that happens
    """

    left: Tensor
    right: Tensor
    note: Callable[[str], None]

    @classmethod
    def from_factors(cls, left: Tensor, right: Tensor, note: Callable[[str], None]) -> Any:
        shape, source = (len(left), right.shape[1]), left if left.requires_grad else right
        write = partial(torch.mm, left, right)
        product = cls.of(shape, source, write, "matrices were multiplied", (left, right))
        product.left, product.right, product.note = left, right, note
        return product

    @classmethod
    def without_writing(cls, func: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
        if kwargs or not args or func not in _EXPONENTIAL | _DIVIDE | MULTIPLY:
            return None
        swapped = func in MULTIPLY and len(args) == 2 and isinstance(args[1], LargeProduct)
        product, *numbers = args[::-1] if swapped else args
        if not LargeProduct.is_open(product):
            return None
        if func in _EXPONENTIAL:
            product.check()
            return torch.mm(product.left, product.right).exp_()
        return _scaled(product, numbers[0], func in _DIVIDE)


def _scaled(product: LargeProduct, number: Any, divide: bool) -> Any:
    if type(number) not in (int, float) or not math.isfinite(number) or number == 0:
        return None
    product.check()
    product.note("scale")
    left, right, factor = product.left, product.right, 1 / number if divide else number
    if left.numel() <= right.numel():
        return LargeProduct.from_factors(left * factor, right, product.note)
    return LargeProduct.from_factors(left, right * factor, product.note)
