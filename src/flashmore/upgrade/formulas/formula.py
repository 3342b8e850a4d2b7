"""A known function of a tensor, and what is written in the place of lines that compute it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["weight", "bias", "eps", "target"]
"""What a further input is: a learned vector, a small number, class numbers."""
LIKE_WEIGHT = "{x}.dtype == {weight}.dtype and {x}.shape[-1:] == {weight}.shape"
"""The guard of a call that takes a weight: by hand one of another dtype or shape is broadcast."""


@dataclass(frozen=True)
class Formula:
    """One function, by its values.

    Args:
        name: the variant, for reports.
        reason: what the lines compute, or why they are left alone if there is no call.
        compute: the function of an array, and of the further inputs by role.
        call: the text that replaces the lines, with `{functional}` for torch.nn.functional, `{x}`, `{shape}`
            (the text of a tensor of x's shape) and the roles. Empty where such lines are left alone.
        advice: what somebody can do where there is no call.
        roles: the further inputs. A role `eps` is the last one, and may be a number of the source, which is
            then written out.
        tolerance: how far values may lie apart, relative to the largest; larger than rounding only for
            functions whose constants people round.
        guard: a test under which alone the call has the dtype of the lines, with the same words as the call.
        axis: a dimension that the lines have to name, too: another number for it fits fewer inputs.
        assumptions: what the replacement takes for granted, each with the operation that has it so among the
            lines, or "" for any.
    """

    name: str
    reason: str
    compute: Callable[..., Any]
    call: str = ""
    advice: str = ""
    roles: tuple[Role, ...] = ()
    tolerance: float = 1e-12
    guard: str = ""
    axis: int | None = None
    assumptions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Formulas:
    """The formulas of one rule.

    Args:
        known: in the order in which they are tried.
        needs: operations, one of which every spelling has.
        samples: arrays for x, of several numbers of dimensions; lines must agree on every one that they take.
        least: for how many of these numbers of dimensions the lines must run, where x's is not known.
        axes: the letters of x in a test, by its number of dimensions.
        fused: functions of PyTorch that compute it: a file that compares with them keeps its own lines.
        keeps_result: whether the gradient of the replacement is computed from its result.
        widens: whether the replacement may return float32 where the lines return 16 bits under autocast.
    """

    known: Sequence[Formula]
    needs: frozenset[str]
    samples: Sequence[Any]
    fused: frozenset[str]
    axes: Mapping[int, tuple[str, ...]] = field(
        default_factory=lambda: {1: ("D",), 2: ("L", "D"), 3: ("B", "L", "D"), 4: ("B", "H", "L", "D")}
    )
    least: int = 1
    keeps_result: bool = False
    widens: bool = False
