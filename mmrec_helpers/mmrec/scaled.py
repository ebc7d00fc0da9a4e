"""Products that are larger than their factors, over a number and exponentiated, as contrastive losses have them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmrec_helpers.mmrec.deferred import ABOUT, Deferred
from mmrec_helpers.mmrec.picked import MULTIPLY, check_unchanged

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
    check: Callable[[], None]

    @classmethod
    def from_factors(cls, left: Tensor, right: Tensor, note: Callable[[str], None]) -> Any:
        factors = left, right
        check = partial(check_unchanged, "matrices were multiplied", factors, (left._version, right._version))
        source = left if left.requires_grad else right
        product: Any = cls.of((len(left), right.shape[1]), source, partial(_multiplied, left, right, check))
        product.left, product.right, product.note, product.check = left, right, note, check
        return product

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = None if func in ABOUT or kwargs else _shortened(func, args)
        return super().__torch_function__(func, types, args, kwargs) if out is None else out


def _multiplied(left: Tensor, right: Tensor, check: Callable[[], None]) -> Tensor:
    check()
    return left @ right


def _shortened(func: Any, args: tuple) -> Tensor | None:
    """The exponential of a product, or it times or over a number; None for another function."""
    if func in _EXPONENTIAL and isinstance(args[0], LargeProduct) and args[0].written is None:
        args[0].check()
        return (args[0].left @ args[0].right).exp_()
    if len(args) != 2 or func not in _DIVIDE | MULTIPLY:
        return None
    product, number = args[::-1] if func in MULTIPLY and isinstance(args[1], LargeProduct) else args
    if not isinstance(product, LargeProduct) or product.written is not None:
        return None
    if type(number) not in (int, float) or not math.isfinite(number) or number == 0:
        return None
    product.check()
    product.note("scale")
    left, right, factor = product.left, product.right, 1 / number if func in _DIVIDE else number
    if left.numel() <= right.numel():
        return LargeProduct.from_factors(left * factor, right, product.note)
    return LargeProduct.from_factors(left, right * factor, product.note)
