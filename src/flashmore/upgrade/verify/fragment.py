"""The test of one fragment: every case of the family, and what it comes to. The lines run elsewhere."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, product

import torch

from flashmore.upgrade.site import NAN_ROWS, Fragment, Input
from flashmore.upgrade.verify import coverage
from flashmore.upgrade.verify.allowed import NotAllowed
from flashmore.upgrade.verify.case import LinesRaised, MakeArguments, Setting, run_cases
from flashmore.upgrade.verify.dropout import compare_draws, compare_zeros, is_random
from flashmore.upgrade.verify.family import (
    FLOAT32,
    FULLY_MASKED,
    LAYERS,
    USUAL,
    WHOLE,
    Case,
    Choices,
    Fill,
    Precision,
    base_of,
    has_two_lengths,
    is_mask,
    modes_of,
    questions_of,
    swallows_a_bias,
)
from flashmore.upgrade.verify.lines import Limits
from flashmore.upgrade.verify.result import MASKED_ROWS, CaseResult, Kernels, Mode, Verification, not_tested
from flashmore.upgrade.verify.runner import Runner, runners
from flashmore.upgrade.verify.tensors import DROPOUT, NotMade, Values

MOST_ASKED = 8
"""Combinations of flags and optional inputs for which the kernels are asked for."""


@dataclass(frozen=True)
class Functions:
    """Both functions of a fragment, each in its own process, and what they are given."""

    old: Runner
    new: Runner
    inputs: tuple[Input, ...]
    probabilities: frozenset[str]
    """Inputs that are given to dropout as its p."""
    widens: bool
    """See `Fragment`."""


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


def verify_fragment(fragment: Fragment, assumptions: Sequence[str], limits: Limits) -> Verification:
    """Try a fragment on synthetic tensors.

    Args:
        fragment: what the search extracted.
        assumptions: what the rewriting took for granted, kept in the test.
        limits: of the processes that run the lines.

    Returns:
        The test. It holds only if something was compared, nothing differs, and the plain case was finite.

    Raises:
        RunnerEnded: a process that runs the lines ended, or took too long.
    """
    failed = partial(not_tested, assumptions=tuple(assumptions))
    try:
        with runners(fragment, limits) as (old, new):
            functions = Functions(old, new, fragment.inputs, _probabilities(fragment), fragment.widens)
            refusals: list[str] = []
            takes = partial(_takes, functions, refusals)
            accepted = coverage.accepted(questions_of(fragment.inputs), takes)
            if not accepted.combinations:
                return failed(f"the original rejects all synthetic inputs: {refusals[-1]}")
            everything = design = _with_kernels(
                coverage.whole(fragment.inputs, accepted.combinations), fragment
            )
            if coverage.size(everything) > coverage.MOST_CASES:
                design = coverage.thinned(everything)
            cases: list[CaseResult] = []
            for case in _tried(functions, design):
                cases.append(case)
                if case.result == "differs":
                    return concluded(cases, fragment, assumptions)
            some = accepted.combinations[:MOST_ASKED]
            kernels = tuple(dict.fromkeys(each for one in some for each in _kernels(functions, one)))
    except (NotAllowed, NotMade) as error:
        return failed(str(error))
    left_out = coverage.said(accepted, design, everything)
    verification = concluded(cases, fragment, (*assumptions, *left_out))
    return replace(verification, kernels=kernels) if verification.passed else verification


def _with_kernels(design: coverage.Design, fragment: Fragment) -> coverage.Design:
    """The cases, without those of the MATH kernel where no kernel is selected."""
    if "scaled_dot_product_attention" in fragment.new:
        return design
    return [(choices, [case for case in cases if not case.math_kernel]) for choices, cases in design]


def _tried(functions: Functions, design: Sequence[tuple[Choices, Sequence[Case]]]) -> Iterator[CaseResult]:
    for choices, tried in design:
        yield from _cases(functions, choices, tried)
        if len(tried) > 1:
            yield from _dropout(functions, choices)


def _kernels(functions: Functions, choices: Choices) -> Iterator[Kernels]:
    """What the new lines select, with dropout as given, in training and evaluation."""
    modes: tuple[Mode, ...] = ("training", "evaluation")
    for mode, dtype in product(modes, (FLOAT32, Precision("bfloat16", "bfloat16"))):
        training = mode == "training"
        case = replace(
            base_of(functions.inputs, choices),
            shape=USUAL, training=training, module_training=training, precision=dtype,
        )  # fmt: skip
        try:
            arguments = _maker(functions, case)(False)
            found = functions.new.kernels(arguments, Setting(exact=False, backward=training))
        except LinesRaised:  # these lines do not take this dtype
            continue
        if found is not None:
            yield Kernels(mode, dtype.tensors, *found)


def _takes(functions: Functions, refusals: list[str], choices: Choices) -> bool:
    """Whether the original runs with these answers to the open questions; else why not is added."""
    make = _maker(functions, base_of(functions.inputs, choices))
    try:
        functions.old.run(make(False), Setting(exact=False, backward=False))
    except LinesRaised as error:
        refusals.append(error.message)
        return False
    return True


def _maker(functions: Functions, case: Case) -> MakeArguments:
    values = Values(case, functions.inputs, functions.probabilities)
    return lambda double: values.arguments(double=double, dropout_p=DROPOUT)


def _cases(functions: Functions, choices: Choices, tried: Sequence[Case]) -> Iterator[CaseResult]:
    has_mask = any(is_mask(given) for given in functions.inputs)
    draws_in_eval = any(not case.training for case in tried) and _draws_in_evaluation(functions, choices)
    for _, alike in groupby(tried, key=lambda case: replace(case, math_kernel=False)):
        kernels = list(alike)
        case = kernels[0]
        lowers = _lowers_rows(functions, case)
        if lowers and len(kernels) == 1:
            kernels.append(replace(case, math_kernel=True))
        setting = Setting(
            autocast=case.precision.autocast,
            eps=_rounding(case, lowers=lowers),
            exact=case.training or case.module_training or draws_in_eval,
            widens=functions.widens and case.precision.autocast is not None,
        )
        settings = {each.name(has_mask): replace(setting, math_kernel=each.math_kernel) for each in kernels}
        make = _maker(functions, case)
        results = list(run_cases(settings, functions.old.run, functions.new.run, make))
        if lowers and _math_agrees(results):
            results = [_of_masked_rows(each) for each in results]
        yield from results
        if not case.training:
            forward = {
                f"{name}, no gradients": replace(each, backward=False) for name, each in settings.items()
            }
            yield from run_cases(forward, functions.old.run, functions.new.run, make)


def _lowers_rows(functions: Functions, case: Case) -> bool:
    """Whether all keys of a row are masked, also where the lines mask the others themselves.

    Then numbers such as -1e4 lower all scores of the row, where -inf makes its output NaN.
    """
    if case.mask == FULLY_MASKED or case.fill == "-inf":
        return case.mask == FULLY_MASKED
    make = _maker(functions, replace(case, fill="-inf"))
    try:
        found = functions.old.run(make(True), Setting(exact=False, backward=False), double=True)
    except LinesRaised:
        return False
    return any(tensor.isnan().any() for tensor in found.values())


def _rounding(case: Case, *, lowers: bool) -> float:
    """One rounding of the smallest dtype; of scores that are all about -1e4, where a row of them is."""
    eps = torch.finfo(getattr(torch, case.precision.coarsest)).eps
    return eps * 1e4 if lowers and case.fill == "-1e4" and case.precision.coarsest == "float32" else eps


def _math_agrees(results: Sequence[CaseResult]) -> bool:
    """Whether the unfused kernel, which is the last one tried, computes what the original does."""
    return len(results) > 1 and results[-1].result == "equal"


def _of_masked_rows(result: CaseResult) -> CaseResult:
    """Gradients of a row whose scores are all about -1e9, which fused kernels get wrong.

    They recompute the weights as exp(score - logsumexp), and next to such numbers the logarithm of the number
    of keys S is lost: each weight is 1, where it should be 1 / S.
    """
    wrong = [each.name for each in result.tensors if not each.good]
    if not wrong or any(name.startswith("out") for name in wrong):
        return result
    tensors = tuple(each if each.good else replace(each, verdict=MASKED_ROWS) for each in result.tensors)
    return replace(result, result="equal", detail=MASKED_ROWS, tensors=tensors)


def _draws_in_evaluation(functions: Functions, choices: Choices) -> bool:
    case = replace(base_of(functions.inputs, choices), training=False, module_training=False)
    try:
        return is_random(functions.old, _maker(functions, case))
    except LinesRaised:
        return False


def _dropout(functions: Functions, choices: Choices) -> Iterator[CaseResult]:
    """The statistics of every mode in which either side draws random numbers."""
    has_mask = any(is_mask(given) for given in functions.inputs)
    for training, module_training in modes_of(functions.inputs):
        case = replace(base_of(functions.inputs, choices), training=training, module_training=module_training)
        make = _maker(functions, case)
        try:
            draws = is_random(functions.old, make)
        except LinesRaised:
            continue
        try:
            draws = draws or is_random(functions.new, make)
        except LinesRaised:  # told of by comparing
            draws = True
        if draws:
            name = f"{case.name(has_mask)}, dropout"
            yield compare_draws(name, functions.old, functions.new, make)
            single = _maker(functions, replace(case, shape="T = 1", mask="all kept"))
            yield compare_zeros(f"{name}, T = 1", functions.old, functions.new, single)


def concluded(
    cases: Sequence[CaseResult], fragment: Fragment, assumptions: Sequence[str], on: str = "synthetic tensors"
) -> Verification:
    """What the cases come to."""
    assumed = tuple(dict.fromkeys((*assumptions, *_assumed(cases, fragment))))
    different = next((case for case in cases if case.result == "differs"), None)
    if different is not None:
        return Verification(False, on, tuple(cases), assumed, f"{different.name}: {different.detail}")
    whole = [case for case in cases if case.result == "equal" and case.tensors and not case.detail]
    if not whole:
        skipped = next((case.detail for case in cases if case.result == "skipped"), "the original is NaN")
        return Verification(False, on, tuple(cases), assumed, f"nothing could be compared: {skipped}")
    gradients = (tensor.name.startswith("d ") for case in whole for tensor in case.tensors)
    if fragment.differentiable and not any(gradients):
        return Verification(False, on, tuple(cases), assumed, "no gradient could be compared")
    return Verification(True, on, tuple(cases), assumed)


def _assumes_a_bias_away(fragment: Fragment) -> bool:
    """Whether the family leaves out what a bias and a finite mask come to in 16 bits."""
    inputs = fragment.inputs
    plain = any(given.note.startswith("additive") or not given.note for given in inputs if is_mask(given))
    fill: Fill = "-1e4" if plain else "-inf"
    case = Case(mask=FULLY_MASKED, precision=LAYERS[0], fill=fill)
    floats = any(given.dtype == "float" for given in inputs if is_mask(given))
    return floats and swallows_a_bias(case, inputs)


def _assumed(cases: Sequence[CaseResult], fragment: Fragment) -> Iterator[str]:
    if any("NaN" in tensor.verdict or "finite" in tensor.verdict for c in cases for tensor in c.tensors):
        masked = any(is_mask(given) or given.role == "bias" for given in fragment.inputs)
        yield NAN_ROWS if masked else "where the original is NaN, the rewrite may be finite"
    if any(case.detail == MASKED_ROWS for case in cases):
        yield "no gradient comes from rows whose keys are all masked: fused kernels compute another one"
    if any(is_mask(given) for given in fragment.inputs):
        yield "masked keys and values are not NaN"
        if _assumes_a_bias_away(fragment):
            yield "under 16-bit autocast, no row with a bias is fully masked by a number such as -1e4"
        if any("every row keeps a key" in given.note for given in fragment.inputs):
            yield "every row of the mask keeps a key"
    if "is_causal" in fragment.new and not has_two_lengths(fragment.inputs):
        yield "there are as many queries as keys (L = S)"
    for given in fragment.inputs:
        if given.role == "scale" and given.axes is None and not given.note and "(" not in given.source:
            yield f"{given.source} is a number, not a tensor"
        if given.role in ("dropout", "softmax"):
            yield f"no hook is registered on {given.source}, which is no longer called"
    if any("dropout" in case.name and "draws" in case.detail for case in cases):
        yield "dropout may drop other weights for the same seed, with the same probability"
    for what in (*map(str, WHOLE), *map(str, LAYERS)):
        tried = [case for case in cases if what in case.name.split(", ")]
        if tried and all(case.result == "skipped" for case in tried):
            yield f"{what} is not used: the original rejects it, so it was not tried"
