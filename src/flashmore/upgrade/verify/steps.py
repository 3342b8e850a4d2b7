"""A few steps of an optimizer, as a test of a fragment calls them."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

FACTORS = (1.0, -0.5, 2.0, 0.0, 1.5)
"""Of the gradient, one step each: momentum and second moments matter from the second step on."""


def trained(make: Callable[[Sequence[Tensor]], Any], weight: Tensor, gradient: Tensor) -> Tensor:
    """The weights after some steps.

    Args:
        make: the optimizer of some parameters.
        weight: a matrix, which stays as it is.
        gradient: of its shape.
    """
    parameter = weight.detach().clone().requires_grad_()
    optimizer = make([parameter])
    for factor in FACTORS:
        parameter.grad = (gradient.detach() * factor).to(parameter.dtype)
        optimizer.step()
    return parameter.detach()
