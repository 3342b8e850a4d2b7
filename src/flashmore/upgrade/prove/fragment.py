"""The proof of one fragment inside the child process: every case of the family, and what it comes to."""

import ast
import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from types import CodeType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flashmore.upgrade.prove.allowed import AT_HAND, NotAllowed, compiled
from flashmore.upgrade.prove.case import Lines, MakeArguments, Setting, run_case
from flashmore.upgrade.prove.dropout import compare_draws, compare_zeros, is_random
from flashmore.upgrade.prove.family import (
    MASKS,
    Case,
    Choice,
    Fill,
    all_choices,
    base_of,
    family,
    has_two_lengths,
    is_mask,
    modes_of,
    swallows_a_bias,
)
from flashmore.upgrade.prove.result import CaseResult, Proof, not_proved
from flashmore.upgrade.prove.tensors import DROPOUT, NotMade, Values
from flashmore.upgrade.site import Fragment, Input

OF_EINOPS = ("rearrange", "repeat", "reduce", "einsum", "pack", "unpack")
MOST_ACCEPTED = 32
"""Answers to open questions, such as shapes of a mask or flags, for which the whole family is run."""
MOST_ASKED = 256
"""Answers that are tried at all."""
REFUSALS = (RuntimeError, ValueError, IndexError, AssertionError, TypeError, AttributeError)


@dataclass(frozen=True)
class Functions:
    """Both functions of a fragment, ready to be called."""

    old: Lines
    new: Lines
    inputs: tuple[Input, ...]
    probabilities: frozenset[str]
    """Inputs that are given to dropout as its p."""
    draws_in_eval: bool = False
    """The original drops out in evaluation too."""


def functions_of(fragment: Fragment) -> Functions:
    """Compile a fragment after it was read.

    Raises:
        NotAllowed: it holds something that a proof does not run, or needs a package that is not here.
    """
    old_code, new_code = compiled(fragment)
    space = _names(fragment)
    old, new = (_function(code, name, space) for code, name in ((old_code, "old"), (new_code, "new")))
    return Functions(old, new, fragment.inputs, _probabilities(fragment))


def _function(code: CodeType, name: str, space: Mapping[str, Any]) -> Lines:
    defined = dict(space)
    exec(code, defined)  # `compiled` has read it
    function: Lines = defined[name]
    return function


def _names(fragment: Fragment) -> dict[str, Any]:
    """The modules that the lines may use, einops only where they do."""
    builtins = importlib.import_module("builtins")
    space: dict[str, Any] = {"__builtins__": {word: getattr(builtins, word) for word in AT_HAND}}
    space |= {"torch": torch, "F": F, "nn": nn, "math": math, "np": np}
    nodes = (node for source in (fragment.old, fragment.new) for node in ast.walk(ast.parse(source)))
    if {node.id for node in nodes if isinstance(node, ast.Name)} & {"einops", *OF_EINOPS}:
        try:
            einops = importlib.import_module("einops")
        except ImportError:
            raise NotAllowed(
                "needs einops, which is not installed here: python -m pip install einops"
            ) from None
        space |= {"einops": einops} | {word: getattr(einops, word) for word in OF_EINOPS}
    return space


def _probabilities(fragment: Fragment) -> frozenset[str]:
    """Names of inputs that either function gives to dropout as its probability."""
    names = {given.name for given in fragment.inputs if given.role == "number"}
    found: set[str] = set()
    for source in (fragment.old, fragment.new):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                given = [keyword.value for keyword in node.keywords if keyword.arg in ("p", "dropout_p")]
                given += node.args[1:2] if node.func.attr == "dropout" else []
                found |= {name.id for part in given for name in ast.walk(part) if isinstance(name, ast.Name)}
    return frozenset(found & names)


def prove_fragment(fragment: Fragment, assumptions: Sequence[str] = ()) -> Proof:
    """Try a fragment on synthetic tensors.

    Args:
        fragment: what the search extracted.
        assumptions: what the rewriting took for granted, kept in the proof.

    Returns:
        The proof. It holds only if something was compared, nothing differs, and the plain case was finite.
    """
    failed = partial(not_proved, assumptions=tuple(assumptions))
    try:
        functions = functions_of(fragment)
        accepted, refusal = _accepted(functions)
    except (NotAllowed, NotMade) as error:
        return failed(str(error))
    if not accepted:
        return failed(f"the original takes none of the synthetic inputs: {refusal}")
    cases: list[CaseResult] = []
    if len(accepted) > MOST_ACCEPTED:
        assumptions = (*assumptions, f"{MOST_ACCEPTED} of its {len(accepted)} branches stand for the others")
    for choices in accepted[:MOST_ACCEPTED]:
        cases += _cases(functions, choices)
        if all(case.result != "differs" for case in cases):
            cases += _dropout(functions, choices)
    return concluded(cases, fragment, assumptions)


def _accepted(functions: Functions) -> tuple[list[dict[str, Choice]], str]:
    """The answers to open questions with which the original runs, and why it refuses the last other."""
    accepted, refusal = [], ""
    for choices in islice(all_choices(functions.inputs), MOST_ASKED):
        make = _maker(functions, base_of(functions.inputs, choices))
        try:
            with torch.no_grad():
                functions.old(*(argument.value for argument in make(False)))
            accepted.append(choices)
        except REFUSALS as error:
            refusal = (str(error).splitlines() or [type(error).__name__])[0]
    return accepted, refusal


def _maker(functions: Functions, case: Case) -> MakeArguments:
    values = Values(case, functions.inputs, functions.probabilities)
    return lambda double: values.arguments(double=double, dropout_p=DROPOUT)


def _cases(functions: Functions, choices: Mapping[str, Choice]) -> Iterator[CaseResult]:
    has_mask = any(is_mask(given) for given in functions.inputs)
    evaluation = replace(base_of(functions.inputs, choices), training=False, module_training=False)
    try:
        draws_in_eval = is_random(functions.old, _maker(functions, evaluation), Setting(exact=False))
    except REFUSALS:
        draws_in_eval = False
    for case in family(functions.inputs, choices):
        setting = Setting(
            sixteen=case.precision != "float32",
            math_kernel=case.math_kernel,
            exact=case.training or case.module_training or draws_in_eval,
        )
        make = _maker(functions, case)
        yield run_case(case.name(has_mask), functions.old, functions.new, make, setting)
        if not case.training:
            forward = replace(setting, backward=False)
            name = f"{case.name(has_mask)}, no gradients"
            yield run_case(name, functions.old, functions.new, make, forward)


def _dropout(functions: Functions, choices: Mapping[str, Choice]) -> Iterator[CaseResult]:
    """The statistics of every mode in which either side draws random numbers."""
    has_mask = any(is_mask(given) for given in functions.inputs)
    setting = Setting(exact=False, backward=False)
    for training, module_training in modes_of(functions.inputs):
        case = replace(base_of(functions.inputs, choices), training=training, module_training=module_training)
        make = _maker(functions, case)
        try:
            draws = is_random(functions.old, make, setting)
        except REFUSALS:
            continue
        try:
            draws = draws or is_random(functions.new, make, setting)
        except Exception:  # noqa: BLE001 - a rewrite that raises is told of by comparing
            draws = True
        if draws:
            name = f"{case.name(has_mask)}, dropout"
            yield compare_draws(name, functions.old, functions.new, make, setting)
            single = _maker(functions, replace(case, shape="T = 1", mask="all kept"))
            yield compare_zeros(f"{name}, T = 1", functions.old, functions.new, single, setting)


def concluded(
    cases: Sequence[CaseResult], fragment: Fragment, assumptions: Sequence[str], on: str = "synthetic tensors"
) -> Proof:
    """What the cases come to."""
    assumed = tuple(dict.fromkeys((*assumptions, *_assumed(cases, fragment))))
    different = next((case for case in cases if case.result == "differs"), None)
    if different is not None:
        return Proof(False, on, tuple(cases), assumed, f"{different.name}: {different.detail}")
    whole = [case for case in cases if case.result == "equal" and case.tensors and not case.detail]
    if not whole:
        skipped = next((case.detail for case in cases if case.result == "skipped"), "the original is NaN")
        return Proof(False, on, tuple(cases), assumed, f"nothing could be compared: {skipped}")
    if not any(tensor.name.startswith("d ") for case in whole for tensor in case.tensors):
        return Proof(False, on, tuple(cases), assumed, "no gradient could be compared")
    return Proof(True, on, tuple(cases), assumed)


def _assumes_a_bias_away(fragment: Fragment) -> bool:
    """Whether the family leaves out what a bias and a finite mask come to in 16 bits."""
    inputs = fragment.inputs
    plain = any(given.note.startswith("additive") or not given.note for given in inputs if is_mask(given))
    fill: Fill = "-1e4" if plain else "-inf"
    case = Case(mask=MASKS[-1], precision="bfloat16 under autocast", fill=fill)
    floats = any(given.dtype == "float" for given in inputs if is_mask(given))
    return floats and swallows_a_bias(case, inputs)


def _assumed(cases: Sequence[CaseResult], fragment: Fragment) -> Iterator[str]:
    if any("NaN" in tensor.verdict or "finite" in tensor.verdict for c in cases for tensor in c.tensors):
        yield "where a row's keys are all hidden the original is NaN: there the rewrite may be finite"
    if any(is_mask(given) for given in fragment.inputs):
        yield "keys and values that a mask hides hold numbers, not NaN"
        if _assumes_a_bias_away(fragment):
            yield "under 16-bit autocast no row is masked throughout by a number such as -1e4 beside a bias"
        if any("every row keeps a key" in given.note for given in fragment.inputs):
            yield "every row of the mask keeps a key"
    if "is_causal" in fragment.new and not has_two_lengths(fragment.inputs):
        yield "there are as many queries as keys (L = S)"
    for given in fragment.inputs:
        if given.role == "scale" and given.axes is None and "(" not in given.source:
            yield f"{given.source} is a number, not a tensor"
        if given.role in ("dropout", "softmax"):
            yield f"no hook listens to {given.source}, which is no longer called"
    if any("dropout" in case.name and "draws" in case.detail for case in cases):
        yield "other weights are dropped for the same seed than before, with the same probability"
    sixteen = [case for case in cases if "bfloat16" in case.name]
    if sixteen and all(case.result == "skipped" for case in sixteen):
        yield "not tried under bfloat16 autocast, which the original does not take"
