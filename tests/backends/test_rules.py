"""The rules say what the installed torch does: no more, no less, and no row for nothing."""

from collections.abc import Callable
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmore.errors import ConfigError
from flashmore.rules import DTYPES, MASK_DTYPES, RULES, AttentionCall, Rule
from flashmore.specs import BackendSpec, backend_spec, backends, usable

HERE = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
Calls = Callable[[str], list[AttentionCall]]


def disagreements(reality: Any, call: AttentionCall) -> list[str]:
    return [
        f"{backend}: {[str(reason) for reason in backend_spec(backend).reasons_against(call)]}, {call}"
        for backend in backends()
        if reality.tried(backend, call)
        and reality.runs(backend, call) == bool(backend_spec(backend).reasons_against(call))
    ]


@pytest.mark.parametrize("device", HERE)
def test_rules_and_reality_agree_on_every_combination(device: str, reality: Any, product_of: Calls) -> None:
    calls = product_of(device)
    assert len(set(calls)) == len(calls) >= 300
    assert [found for call in calls for found in disagreements(reality, call)] == []


@pytest.mark.parametrize("device", HERE)
def test_rules_and_reality_agree_on_special_calls(device: str, reality: Any, specials_of: Calls) -> None:
    assert [found for call in specials_of(device) for found in disagreements(reality, call)] == []


@pytest.mark.parametrize(
    ("length", "given"),
    [((3, 8, 4), {}), ((2, 3, 8, 4), {"mask": (8, 8), "causal": True})],
    ids=["3-D", "a mask and causal"],
)
def test_a_kernel_of_another_package_takes_only_what_attention_passes_on(
    length: tuple[int, ...], given: dict[str, Any]
) -> None:
    other, manual = BackendSpec("tiled", "package:function", "tile after tile"), backend_spec("manual")
    call = AttentionCall(length, length, length, **given)
    assert other.reasons_against(call) == manual.reasons_against(call) != ()
    assert not other.reasons_against(AttentionCall((2, 3, 8, 4), (2, 3, 8, 4), (2, 3, 8, 4)))


@st.composite
def descriptions(draw: st.DrawFn) -> dict[str, Any]:
    """The fields of a call, which need not fit together."""
    size = st.sampled_from((1, 2, 3, 4))
    lead = tuple(draw(st.lists(size, max_size=3)))
    L, S, D = draw(st.sampled_from((1, 2, 7, 16))), draw(st.sampled_from((1, 7, 16))), draw(size)

    def other_lead() -> tuple[int, ...]:
        changed = tuple(n if draw(st.integers(0, 4)) else draw(size) for n in lead)
        return changed[draw(st.sampled_from((0, 0, 0, 1))) :]

    dtype = draw(st.sampled_from(DTYPES))
    mask, mask_dtype = None, "bool"
    if draw(st.booleans()):
        whole = (1, *lead, L, S)
        kept = draw(st.integers(0, len(whole)))
        mask = tuple(n if draw(st.integers(0, 3)) else 1 for n in whole[len(whole) - kept :])
        mask_dtype = draw(st.sampled_from(("bool", "float32", dtype, *MASK_DTYPES)))
    return {
        "query": (*lead, L, D),
        "key": (*other_lead(), S, D),
        "value": (*other_lead(), S, draw(st.sampled_from((D, D, D, 8)))),
        "dtype": dtype,
        "mask": mask,
        "mask_dtype": mask_dtype,
        "mask_needs_grad": mask_dtype in DTYPES and mask is not None and draw(st.booleans()),
        "mask_unit_stride": draw(st.booleans()),
        "causal": draw(st.booleans()),
        "dropout_p": draw(st.sampled_from((0.0, 0.0, 0.5, 1.0))),
        "needs_grad": draw(st.booleans()),
        "gqa": draw(st.booleans()),
        "unit_stride": draw(st.integers(0, 5)) > 0,
        "deterministic": draw(st.integers(0, 9)) == 0,
    }


@given(description=descriptions())
@settings(max_examples=500, deadline=None)
def test_random_calls_run_as_the_rules_say_and_invalid_ones_nowhere(
    description: dict[str, Any], reality: Any
) -> None:
    try:
        call = AttentionCall(**description)
    except ConfigError:
        left_out = {field.name: field.default for field in fields(AttentionCall)}
        raw = SimpleNamespace(**{**left_out, **description})
        assert not any(
            reality.runs.__wrapped__(reality, backend, raw) for backend in ("sdpa", "math", "flash")
        )
    else:
        assert disagreements(reality, call) == []


def broken(backend: str, call: AttentionCall) -> list[Rule]:
    return [rule for rule in RULES if (call.device, backend) in rule.kernels and rule.breaks(call)]


def test_every_rule_for_the_cpu_is_needed(product_of: Calls, specials_of: Calls) -> None:
    """Each stands alone against some call that the tests above have run: without it they would fail."""
    calls = product_of("cpu") + specials_of("cpu")
    alone = {
        (backend, id(rules[0]))
        for call in calls
        for backend in backends()
        if len(rules := broken(backend, call)) == 1
    }
    needless = [
        f"{backend}: {rule.reason}"
        for rule in RULES
        for device, backend in rule.kernels
        if device == "cpu"
        and (backend, id(rule)) not in alone
        # Where PyTorch has no kernel of this name, nothing else has to be said.
        and broken(backend, calls[0]) == []
    ]
    assert needless == []


S64 = (2, 4, 32, 64)
ON_CUDA = AttentionCall(S64, S64, S64, dtype="bfloat16", device="cuda", capability=(9, 0))
BEYOND_CPU: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"dtype": "float32"}, {"flash": "float32", "cudnn": "float32"}),
    ({"dtype": "float64"}, {"efficient": "float64"}),
    ({"capability": (7, 5)}, {"efficient": "bfloat16 on compute capability 7.5"}),
    ({"capability": (7, 5), "dtype": "float16"}, {"flash": "7.5", "cudnn": "7.5"}),
    ({"mask": (32, 32)}, {"flash": "does not support attn_mask"}),
    ({"mask": (32, 32), "mask_unit_stride": False}, {"efficient": "mask", "cudnn": "mask"}),
    ({"mask": (32, 32), "mask_dtype": "float32"}, {"efficient": "reads only one dtype"}),
    ({"mask": (4, 32, 32)}, {"cudnn": "neither 2-D nor 4-D"}),
    ({"mask": (32, 32), "mask_dtype": "bfloat16", "mask_needs_grad": True}, {"cudnn": "gradient"}),
    (
        {"mask": (32, 32), "mask_dtype": "float64"},
        {"cudnn": "the mask is float64", "sdpa": "the mask is float64", "math": "the mask is float64"},
    ),
    ({"mask": (32, 32), "causal": True}, {"math": "together", "manual": "not both"}),
    ({"mask": (32, 32), "causal": True, "unit_stride": False}, {"sdpa": "falls back to math"}),
    ({"query": (2, 4, 8, 64), "causal": True}, {"flash": "L = 8, S = 32"}),
    (
        {"query": (4, 32, 64), "key": (4, 32, 64), "value": (4, 32, 64)},
        {"flash": "4-D", "efficient": "4-D", "cudnn": "4-D", "manual": "4-D"},
    ),
    (
        {"key": (2, 1, 32, 64), "value": (2, 1, 32, 64)},
        {"flash": "heads differ", "efficient": "heads differ", "cudnn": "heads differ"},
    ),
    ({"unit_stride": False}, {"flash": "contiguous", "efficient": "contiguous", "cudnn": "contiguous"}),
    ({"value": (2, 4, 32, 128)}, {"flash": "128 channels"}),
    (dict.fromkeys(("query", "key", "value"), (2, 4, 32, 264)), {"flash": "above 256", "cudnn": "264"}),
    (
        {**dict.fromkeys(("query", "key", "value"), (2, 4, 32, 224)), "capability": (8, 9)},
        {"flash": "training with head dimension 224"},
    ),
    (dict.fromkeys(("query", "key", "value"), (2, 4, 32, 20)), {"efficient": "of 8", "cudnn": "of 8"}),
    ({"dropout_p": 0.1}, {"cudnn": "1/16"}),
    ({"deterministic": True}, {"cudnn": "deterministic"}),
    ({"key": (2, 4, 1, 64), "value": (2, 4, 1, 64)}, {"cudnn": "single key"}),
    ({"query": (2, 4, 1, 64), "dropout_p": 0.5}, {"cudnn": "single query"}),
    (dict.fromkeys(("query", "key", "value"), (70_000, 1, 32, 64)), {"cudnn": "65,535"}),
    ({"device": "mps"}, {"flash": "no MPS", "efficient": "no MPS", "cudnn": "no MPS"}),
    ({"device": "mps", "dtype": "float64"}, {"manual": "float64", "sdpa": "float64", "math": "float64"}),
]


@pytest.mark.parametrize(("changes", "against"), BEYOND_CPU, ids=lambda value: str(value)[:60])
def test_reasons_on_devices_that_need_not_be_here(changes: dict[str, Any], against: dict[str, str]) -> None:
    call = replace(ON_CUDA, **changes)
    for backend, words in against.items():
        (reason,) = backend_spec(backend).reasons_against(call)
        assert words in str(reason)
        assert reason.change


def test_every_other_rule_is_broken_alone_above() -> None:
    calls = [replace(ON_CUDA, **changes) for changes, _ in BEYOND_CPU]
    alone = {
        id(rules[0]) for call in calls for backend in backends() if len(rules := broken(backend, call)) == 1
    }
    others = [rule for rule in RULES if any(device != "cpu" for device, _ in rule.kernels)]
    assert [rule.reason for rule in others if id(rule) not in alone] == []


def test_everything_runs_on_cuda_for_a_common_call() -> None:
    assert usable(ON_CUDA) == tuple(backends())


@pytest.mark.parametrize(
    ("changes", "runs"),
    [
        ({"mask": (4, 32, 32)}, "efficient"),  # expands the mask by itself
        ({"query": (2, 4, 1, 64)}, "cudnn"),
        ({"dropout_p": 0.1875}, "cudnn"),
        ({"key": (2, 2, 32, 64), "value": (2, 4, 32, 64), "gqa": True}, "cudnn"),
        ({"key": (2, 2, 32, 64), "value": (2, 2, 32, 64), "gqa": True}, "flash"),
        ({"dtype": "float32", **dict.fromkeys(("query", "key", "value"), (2, 4, 32, 20))}, "efficient"),
        (dict.fromkeys(("query", "key", "value"), (2, 4, 32, 20)), "flash"),
        (dict.fromkeys(("query", "key", "value"), (2, 4, 32, 256)), "flash"),
        ({"query": (2, 4, 32, 192), "key": (2, 4, 32, 192), "value": (2, 4, 32, 128)}, "cudnn"),
        (
            {
                "dtype": "float32",
                "capability": (7, 0),
                **dict.fromkeys(("query", "key", "value"), (2, 4, 32, 3)),
            },
            "efficient",
        ),
        (
            {
                "needs_grad": False,
                "capability": (8, 9),
                **dict.fromkeys(("query", "key", "value"), (2, 4, 32, 224)),
            },
            "flash",
        ),
    ],
    ids=str,
)
def test_what_cuda_takes_is_not_refused(changes: dict[str, Any], runs: str) -> None:
    assert backend_spec(runs).reasons_against(replace(ON_CUDA, **changes)) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query": (2, 4, -1, 64)}, "each at least 1"),
        ({"query": (64,)}, "at least two dimensions"),
        ({"key": (2, 4, 32, 32)}, "same D"),
        ({"value": (2, 4, 31, 64)}, "same S"),
        ({"key": (3, 4, 32, 64)}, "equal or 1"),
        ({"key": (2, 3, 32, 64), "value": (2, 3, 32, 64), "gqa": True}, "divide"),
        ({"query": (32, 64), "key": (32, 64), "value": (32, 64), "gqa": True}, "divide"),
        ({"mask": (32, 31)}, "fits the scores"),
        ({"mask": (3, 1, 32, 32)}, "fits the scores"),
        ({"mask": (1, 2, 4, 32, 32)}, "fits the scores"),
        ({"dropout_p": -0.1}, "from 0 to 1"),
        ({"dropout_p": float("nan")}, "from 0 to 1"),
        ({"dtype": "float8"}, "dtype"),
        ({"mask": (32, 32), "mask_dtype": "complex64"}, "dtype of the mask"),
        ({"device": "tpu"}, "device"),
        ({"mask": (32, 32), "mask_needs_grad": True}, "floating-point"),
    ],
    ids=str,
)
def test_a_call_that_nothing_takes_is_refused_at_once(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(ON_CUDA, **changes)
