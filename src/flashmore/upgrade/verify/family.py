"""The family of cases that a synthetic test tries: sizes, masks, precisions, modes, layouts; no torch here.

Sizes are all different, so that a rewrite that mixes two of them up cannot pass by broadcasting.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

from flashmore.upgrade.site import Input

Dtype = Literal["float64", "float32", "float16", "bfloat16"]
Sixteen = Literal["float16", "bfloat16"]
SIXTEEN: tuple[Sixteen, ...] = ("bfloat16", "float16")
Layout = Literal["contiguous", "transposed", "sliced", "last stride 2"]
Fill = Literal["-inf", "-1e4", "finfo.min"]
Choice = str | bool | tuple[str, ...] | None
"""What one open question about an input is answered with: a mask's shape or values, a flag, None."""
Choices = Mapping[str, Choice]
"""The answers to all of them."""

SQUARE = {"B": 2, "H": 3, "L": 5, "S": 5, "D": 8, "E": 8}
"""Values as wide as queries and keys, for the CPU's fused kernel takes no others."""
SHAPES: dict[str, dict[str, int]] = {
    "square": {},
    "L < S": {"S": 7},
    "L > S": {"L": 7, "S": 4, "E": 10},
    "L = 1": {"L": 1, "S": 7},
    "T = 1": {"L": 1, "S": 1},
    "batch 1": {"B": 1, "E": 10},
    "longer than a tile": {"B": 1, "H": 2, "L": 70, "S": 70, "D": 16, "E": 16},
    "L ≠ S, longer than a tile": {"B": 1, "H": 2, "L": 33, "S": 70, "D": 16, "E": 16},
}
USUAL, USUAL_SIZES = "usual sizes", {"L": 64, "S": 64, "D": 64, "E": 64}
"""Not of the family: sizes for which the fused kernels are made."""
SPARE = (4, 9, 11, 13, 14, 17)
"""Sizes of letters that are none of ours."""
BUFFER_ROOM = 3
"""How much longer than L and S a buffer is from which the lines cut a piece (letter M)."""
MASKS = (
    "random mask", "all kept", "causal mask", "padding right", "padding left", "one row fully masked",
)  # fmt: skip
FULLY_MASKED = MASKS[-1]
UNLIKE_BOTH_WAYS = ("random mask", "padding right", "padding left")
"""Masks that keep a key in every row, whether True keeps or hides."""
FIXED_MASKS = ("lower triangular", "upper triangular", "diagonal")
FILLS: tuple[Fill, ...] = ("-1e4", "finfo.min")
UNKNOWN_SHAPES: tuple[tuple[str, ...], ...] = (
    ("L", "S"), ("B", "1", "L", "S"), ("B", "1", "1", "S"), ("1", "H", "L", "S"), ("B", "H", "L", "S"),
    ("B", "L", "S"), ("B", "S"), ("N", "L", "S"), ("H", "L", "S"),
)  # fmt: skip


@dataclass(frozen=True)
class Precision:
    """The dtypes of one call."""

    tensors: Dtype = "float32"
    """Of q, k, v, and of what else comes out of layers."""
    rest: Dtype = "float32"
    """Of masks, biases and learned scales."""
    autocast: Sixteen | None = None
    apart: str | None = None
    """The one tensor that is float32 where the others have 16 bits."""

    def of(self, given: Input) -> Dtype:
        """The dtype of one floating-point input."""
        if given.name == self.apart:
            return "float32"
        return self.tensors if given.role == "tensor" else self.rest

    @property
    def coarsest(self) -> Dtype:
        """The dtype that takes part and rounds most."""
        parts = {self.tensors, self.rest, self.autocast}
        return "bfloat16" if "bfloat16" in parts else "float16" if "float16" in parts else "float32"

    def __str__(self) -> str:
        """What a report calls it."""
        text: str = self.tensors
        if self.apart is not None:
            text += f" but {self.apart} in float32"
        if self.rest != self.tensors and not self.autocast:
            text += f" with masks and biases in {self.rest}"
        if self.autocast == self.tensors:
            return f"{text} under autocast" if self.rest == "float32" else f"all {text} under autocast"
        return f"{text} under {self.autocast} autocast" if self.autocast else text


FLOAT32 = Precision()
LAYERS: tuple[Precision, ...] = tuple(Precision(each, "float32", each) for each in SIXTEEN)
"""Under autocast q, k and v come out of layers in 16 bits; what is learned or given stays in 32."""
WHOLE: tuple[Precision, ...] = tuple(Precision(each, each) for each in SIXTEEN)
"""A model in 16 bits."""
COMMON = (FLOAT32, *LAYERS, *WHOLE)
"""What models are run in; tried with every mask and kernel."""
FURTHER: tuple[Precision, ...] = (
    *(Precision("float32", "float32", each) for each in SIXTEEN),
    *(Precision(each, each, autocast) for each in SIXTEEN for autocast in SIXTEEN),
)


def precisions(inputs: Sequence[Input]) -> list[Precision]:
    """Float32, float16 and bfloat16, each as it is and under either autocast, and dtypes that are mixed."""
    floats = [given for given in inputs if given.dtype == "float" and (given.axes or given.role == "mask")]
    rest = any(given.role != "tensor" for given in floats)
    tensors = [given.name for given in floats if given.role == "tensor"]
    mixed = [Precision(each, "float32") for each in SIXTEEN] + [Precision("float32", "float64")]
    apart = [Precision(each, each, None, name) for each in SIXTEEN for name in tensors]
    return [*LAYERS, *WHOLE, *FURTHER, *(mixed if rest else []), *(apart if len(tensors) > 1 else [])]


@dataclass(frozen=True)
class Case:
    """One way to call the extracted lines."""

    shape: str = "square"
    mask: str = "random mask"
    hides: bool = False
    """A True in a bool mask hides its key, instead of keeping it."""
    precision: Precision = FLOAT32
    math_kernel: bool = False
    training: bool = True
    module_training: bool = True
    """The mode of dropout modules, which may differ from that of the model around them."""
    layout: Layout = "contiguous"
    mask_grad: bool = False
    """Numbers in a mask need a gradient too."""
    fill: Fill = "-inf"
    """What is added to the scores of hidden keys, where an additive mask's note does not tell."""
    choices: Choices = field(default_factory=dict, hash=False)

    def name(self, has_mask: bool) -> str:
        """What a report calls it."""
        parts = [self.shape]
        if has_mask:
            fill = "" if self.fill == "-inf" else f" of {self.fill}"
            parts.append(self.mask + fill + (" (True hides)" if self.hides else ""))
        parts.append(str(self.precision))
        if not (self.training and self.module_training):
            modes = {(False, False): "eval", (True, False): "dropout in eval", (False, True): "model in eval"}
            parts.append(modes[self.training, self.module_training])
        if self.layout != "contiguous":
            parts.append(self.layout)
        if self.mask_grad:
            parts.append("the mask needs a gradient")
        parts += [f"{name}: {_said(choice)}" for name, choice in self.choices.items()]
        return ", ".join([*parts, "MATH kernel"] if self.math_kernel else parts)


def sizes_of(case: Case, inputs: Sequence[Input]) -> dict[str, int]:
    """The size of every letter that the inputs' axes use."""
    sizes = SQUARE | (USUAL_SIZES if case.shape == USUAL else SHAPES[case.shape])
    letters = {letter for given in inputs for axis in given.axes or () for letter in axis.split("*")}
    if "S" not in letters and sizes["S"] != sizes["L"]:
        sizes["S"] = sizes["L"]
    if "E" not in letters:
        sizes["E"] = sizes["D"]
    sizes["1"] = 1
    sizes["N"] = sizes["B"] * sizes["H"]
    sizes["C"] = sizes["H"] * sizes["D"]
    sizes["M"] = max(sizes["L"], sizes["S"]) + BUFFER_ROOM
    spare = iter(SPARE)
    for letter in sorted(letters):
        if letter not in sizes:
            sizes[letter] = int(letter) if letter.isdigit() else next(spare, 2)
    return sizes


def shape_of(axes: Sequence[str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Letters to numbers; `B*H` is a product."""
    return tuple(math.prod(sizes[letter] for letter in axis.split("*")) for axis in axes)


def has_two_lengths(inputs: Sequence[Input]) -> bool:
    """Whether queries and keys may differ in number: the keys have a letter of their own."""
    return any("S" in axis.split("*") for given in inputs for axis in given.axes or ())


def is_mask(given: Input) -> bool:
    """Whether an input's values are those of a mask that a caller gives, and so vary from case to case."""
    return given.role == "mask" and not any(form in given.note for form in FIXED_MASKS)


def questions_of(inputs: Sequence[Input]) -> dict[str, list[Choice]]:
    """What is not known of the inputs, and the answers: the shape of a mask, a flag's value, None or not."""
    questions: dict[str, list[Choice]] = {}
    for given in inputs:
        answers: list[Choice] = []
        if given.role in ("mask", "bias") and given.axes is None:
            answers += UNKNOWN_SHAPES
        elif given.role == "flag" and not given.source.endswith(".training"):
            answers += [False, True]
        if "optional" in given.note:
            answers = [None, *(answers or ["given"])]
        if answers:
            questions[given.name] = answers
    return questions


def base_of(inputs: Sequence[Input], choices: Choices) -> Case:
    """The plainest case, from which the others differ in one thing or two."""
    return Case(choices=choices, hides=_polarities(_masked(inputs, choices))[0])


def _masked(inputs: Sequence[Input], choices: Choices) -> list[Input]:
    return [given for given in inputs if is_mask(given) and choices.get(given.name, "") is not None]


def family(inputs: Sequence[Input], choices: Choices) -> Iterator[Case]:
    """All cases for one answer to the open questions, the plainest first."""
    base = base_of(inputs, choices)
    masked = _masked(inputs, choices)
    shapes = [name for name in SHAPES if not name.startswith("L ") or has_two_lengths(inputs)]
    if _keeps_a_key(masked) and len(_polarities(masked)) == 2:
        shapes.remove("T = 1")  # its one key is hidden, or kept: nothing says which
    for shape, math_kernel in product(shapes, (False, True)):
        yield replace(base, shape=shape, math_kernel=math_kernel)
    shape = "L < S" if "L < S" in shapes else "square"
    for precision in precisions(inputs):
        yield replace(base, shape=shape, precision=precision)
        if precision in COMMON:
            yield replace(base, shape=shape, precision=precision, math_kernel=True)
    for training, module_training in modes_of(inputs)[1:]:
        yield replace(base, training=training, module_training=module_training)
    for layout in ("transposed", "sliced", "last stride 2"):
        yield replace(base, layout=layout)
    if masked:
        yield from (case for case in _masks(base, masked, inputs) if not swallows_a_bias(case, inputs))


def swallows_a_bias(case: Case, inputs: Sequence[Input]) -> bool:
    """Whether a row's scores are all lowered by a number such as -1e4 beside a bias, in 16 bits.

    scaled_dot_product_attention takes one mask, which autocast rounds: next to -1e4 a bias of 1 is lost. By
    hand the two are added in float32. No rewrite can do better, so the case is assumed away, not tried.
    """
    finite = case.fill == "-1e4" or any("-1e" in given.note for given in inputs if is_mask(given))
    return (
        finite
        and case.precision.coarsest in SIXTEEN
        and case.mask == FULLY_MASKED
        and any(given.role == "bias" for given in inputs)
    )


def modes_of(inputs: Sequence[Input]) -> list[tuple[bool, bool]]:
    """Training and evaluation, of the model and of its dropout modules; all four where both are asked."""
    has_modules = any(given.role == "dropout" for given in inputs)
    asks_model = any(given.source.endswith(".training") for given in inputs)
    return [
        (True, True),
        (False, False),
        *([(True, False), (False, True)] if has_modules and asks_model else []),
    ]


def _masks(base: Case, masked: Sequence[Input], inputs: Sequence[Input]) -> Iterator[Case]:
    numbers = any(given.dtype == "float" and "no gradient" not in given.note for given in masked)
    polarities = _polarities(masked)
    every = (FLOAT32, *precisions(inputs))
    kinds = MASKS if not _keeps_a_key(masked) else MASKS[:-1] if len(polarities) == 1 else UNLIKE_BOTH_WAYS
    for mask, hides, precision, math_kernel in product(kinds, polarities, COMMON, (False, True)):
        case = replace(base, mask=mask, hides=hides, precision=precision, math_kernel=math_kernel)
        if (mask, hides) != (base.mask, base.hides):
            yield case
    for precision, hides in product(every, polarities):
        if precision not in COMMON:
            yield replace(base, mask=kinds[-1], hides=hides, precision=precision)
    for hides in polarities if FULLY_MASKED in kinds else ():
        yield replace(base, mask=FULLY_MASKED, hides=hides, training=False, module_training=False)
    if numbers:
        yield replace(base, mask_grad=True)
        for precision in (*LAYERS, *WHOLE):
            yield replace(base, mask_grad=True, mask="padding right", precision=precision)
    if any(
        given.dtype == "float" and given.note in ("", "additive", "additive, optional") for given in masked
    ):
        for fill, precision in product(FILLS, every):
            yield replace(base, fill=fill, mask=kinds[-1], precision=precision)
            if precision in COMMON:
                yield replace(base, fill=fill, mask=kinds[-2], precision=precision)


def _keeps_a_key(masked: Sequence[Input]) -> bool:
    return any("every row keeps a key" in given.note for given in masked)


def _polarities(masked: Sequence[Input]) -> tuple[bool, ...]:
    """Whether True keeps (False) or hides (True): both, where nothing says which."""
    notes = " ".join(given.note for given in masked)
    if "True keeps" in notes or "additive" in notes:
        return (False,)
    return (True,) if "True hides" in notes else (False, True)


def _said(choice: Choice) -> str:
    return f"({', '.join(choice)})" if isinstance(choice, tuple) else str(choice)
