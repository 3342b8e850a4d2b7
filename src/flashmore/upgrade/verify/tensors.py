"""What goes into the extracted lines in one case: tensors, modules and numbers.

Every tensor is a leaf, whose gradient is judged, and an argument made from it: a copy, so that lines which
work in place do not change the leaf, laid out in memory as the case says.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flashmore.upgrade.site import Input
from flashmore.upgrade.verify.family import FIXED_MASKS, FULLY_MASKED, Case, is_mask, shape_of, sizes_of

SEED = 20
NUMBER = 0.37
"""A scale or another number that is none of the usual ones, so that a rewrite cannot guess it."""
DROPOUT = 0.3
FILL = re.compile(r"-\d+(?:\.\d+)?(?:e\d+)?", re.IGNORECASE)


class NotMade(Exception):
    """An input cannot be made from what is known of it; the message says which and why."""


@dataclass
class Argument:
    """One argument of the extracted lines, made anew for every run."""

    name: str
    leaf: Tensor | None
    """What a gradient is taken of; None for modules, numbers, and tensors without gradients."""
    value: object


class Values:
    """The values of all inputs in one case; `arguments` gives them in a precision.

    Args:
        case: what to make.
        inputs: what is known of each.
        probabilities: names of the inputs that are a probability of dropout.

    Raises:
        NotMade: the shape of an input is not known.
    """

    def __init__(
        self, case: Case, inputs: Sequence[Input], probabilities: frozenset[str] = frozenset()
    ) -> None:
        self.case = case
        self.inputs = inputs
        self.probabilities = probabilities
        self.sizes = sizes_of(case, inputs)
        self.masks = [
            given.name for given in inputs if is_mask(given) and case.choices.get(given.name, "") is not None
        ]
        self.generator = torch.Generator().manual_seed(SEED)
        self.values = {given.name: self._value(given) for given in inputs}

    def arguments(self, *, double: bool, dropout_p: float) -> list[Argument]:
        """Fresh arguments.

        Args:
            double: everything in float64, for the reference; else in the case's precision.
            dropout_p: of dropout modules and of numbers that are such a probability.
        """
        return [self._argument(given, double, dropout_p) for given in self.inputs]

    def _argument(self, given: Input, double: bool, dropout_p: float) -> Argument:
        value = self.values[given.name]
        if given.role == "dropout":
            module = nn.Dropout(dropout_p)
            return Argument(given.source, None, module.train(self.case.module_training))
        if given.role == "softmax":
            dim = re.search(r"dim=(-?\d+)", given.note)
            return Argument(given.source, None, nn.Softmax(dim=int(dim[1]) if dim else -1))
        if given.name in self.probabilities and isinstance(value, float):
            return Argument(given.source, None, dropout_p)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return Argument(given.source, None, value)
        rounded = value.to(getattr(torch, self.case.precision.of(given)))
        leaf = rounded.double() if double else rounded
        if given.role == "mask" and not self.case.mask_grad:
            return Argument(given.source, None, leaf.clone())
        leaf = leaf.detach().requires_grad_()
        return Argument(given.source, leaf, self._laid_out(leaf) if given.role == "tensor" else leaf.clone())

    def _laid_out(self, leaf: Tensor) -> Tensor:
        layout = self.case.layout
        if layout == "contiguous" or leaf.dim() == 0:
            return leaf.clone()
        if layout == "transposed" and leaf.dim() > 2:
            return leaf.transpose(-3, -2).clone(memory_format=torch.contiguous_format).transpose(-3, -2)
        if layout == "last stride 2":
            return torch.stack((leaf, leaf), -1)[..., 0]
        return torch.cat((leaf, leaf), -1)[..., : leaf.size(-1)]

    def _value(self, given: Input) -> object:
        choice = self.case.choices.get(given.name, "given")
        if choice is None:
            return None
        if given.role in ("dropout", "softmax"):
            return None
        if given.role == "flag":
            return self.case.training if given.source.endswith(".training") else bool(choice)
        if given.role == "size":
            return shape_of(given.axes or (), self.sizes)[0] if given.axes else self._unknown(given)
        if given.role == "number" or (given.role == "scale" and given.axes is None):
            return 2 if given.dtype == "int" else NUMBER
        axes = choice if isinstance(choice, tuple) else given.axes
        if axes is None:
            return self._unknown(given)
        if given.role == "mask":
            return self._mask(given, axes)
        return self._numbers(given, shape_of(axes, self.sizes))

    def _unknown(self, given: Input) -> object:
        raise NotMade(f"the shape of {given.source} is not known from the source")

    def _numbers(self, given: Input, shape: tuple[int, ...]) -> Tensor:
        if given.dtype == "bool":
            return torch.rand(shape, generator=self.generator) < 0.5
        if given.dtype == "int":
            return torch.randint(0, 2, shape, generator=self.generator)
        made = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        # A learned scale is a number above 0, as a temperature is.
        return made.abs() * 0.5 + 0.2 if given.role == "scale" else made

    def _mask(self, given: Input, axes: Sequence[str]) -> Tensor:
        shape = shape_of(axes, self.sizes)
        for form, build in _FIXED.items():
            if form in given.note:
                return _in_dtype(build(shape), given.dtype)
        keep = self._keep(axes, shape, self.masks.index(given.name))
        says = "True keeps" in given.note or "True hides" in given.note
        hides = "True hides" in given.note if says else self.case.hides
        if given.dtype != "float" or "0/1" in given.note:
            return _in_dtype(keep ^ hides, given.dtype)
        if not given.note or "additive" in given.note:
            lowest = torch.finfo(getattr(torch, self.case.precision.of(given))).min
            fill = _fill(given.note, self.case.fill, lowest)
            return torch.zeros(shape, dtype=torch.float64).masked_fill(~keep, fill)
        return _in_dtype(keep ^ hides, given.dtype)

    def _keep(self, axes: Sequence[str], shape: tuple[int, ...], number: int) -> Tensor:
        """Which keys the mask with this number keeps: every row keeps one and hides one, if it has two.

        Where a row is to be fully masked, each of several masks hides only a part of it.
        """
        keys, queries = _axis(axes, "S"), _axis(axes, "L")
        if keys is None:  # one length alone: L stands for queries and keys
            both = [at for at, axis in enumerate(axes) if axis in ("L", "M")]
            keys, queries = (both[-1] if both else len(axes) - 1), (both[0] if len(both) > 1 else None)
        S = shape[keys]
        position = torch.arange(S).view([-1 if at == keys else 1 for at in range(len(shape))])
        kind = self.case.mask
        if kind == "all kept":
            return torch.ones(shape, dtype=torch.bool)
        if kind == "causal mask" and queries is not None:
            row = torch.arange(shape[queries]).view([-1 if at == queries else 1 for at in range(len(shape))])
            return (position <= row).expand(shape).clone()
        if kind in ("padding right", "padding left"):
            return self._padding(axes, shape, position, S, left=kind == "padding left")
        keep = torch.rand(shape, generator=self.generator) < 0.6
        certain = torch.randint(0, S, (*shape[:keys], 1, *shape[keys + 1 :]), generator=self.generator)
        if len(self.masks) > 1:
            certain.zero_()  # which all of them keep
        keep = (keep | (position == certain)) & ((position != (certain + 1) % S) | (S == 1))
        if kind == FULLY_MASKED:
            rows = keep.movedim(keys, -1)
            rows[(0,) * (rows.dim() - 1)] = torch.arange(S) % len(self.masks) != number
        return keep

    def _padding(
        self, axes: Sequence[str], shape: tuple[int, ...], position: Tensor, S: int, *, left: bool
    ) -> Tensor:
        """One sequence whole, the others shorter: one length for each item of the batch."""
        items = next((at for at, axis in enumerate(axes) if axis in ("B", "N", "B*H")), None)
        count = shape[items] if items is not None else 1
        lengths = (S - torch.arange(1, count + 1)).clamp(min=1)
        lengths = lengths.view([-1 if at == items else 1 for at in range(len(shape))])
        kept = position >= S - lengths if left else position < lengths
        return kept.expand(shape).clone()


def _axis(axes: Sequence[str], letter: str) -> int | None:
    return max((at for at, axis in enumerate(axes) if axis == letter), default=None)


def _in_dtype(mask: Tensor, dtype: str) -> Tensor:
    return {"bool": mask, "int": mask.long(), "float": mask.double()}[dtype]


def _fill(note: str, otherwise: str, lowest: float) -> float:
    """The number that hides a key: what the note says, or the case's; `lowest` is the dtype's."""
    number = FILL.search(note)
    word = (
        "finfo.min" if "finfo" in note else "-inf" if "-inf" in note else number[0] if number else otherwise
    )
    return lowest if word == "finfo.min" else float(word)


def _ones(shape: tuple[int, ...]) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


_FIXED: Mapping[str, Callable[[tuple[int, ...]], Tensor]] = {
    "lower triangular": lambda shape: _ones(shape).tril(),
    "upper triangular": lambda shape: _ones(shape).triu(1),
    "diagonal": lambda shape: torch.eye(shape[-2], shape[-1], dtype=torch.bool).expand(shape).clone(),
}
assert tuple(_FIXED) == FIXED_MASKS
