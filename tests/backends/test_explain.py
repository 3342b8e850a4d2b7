"""What `explain` says is what happens: usable or not, and which kernel PyTorch picks."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flashmore.backends.contract import attention, describe_call
from flashmore.backends.explain import Answer, Explanation, explain
from flashmore.errors import BackendUnavailable
from flashmore.rules import RULES, AttentionCall, Rule, everywhere, on
from flashmore.specs import backend_spec, backends

HERE = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
Calls = Callable[[str], list[AttentionCall]]
MAKEMORE = AttentionCall((32, 4, 16, 16), (32, 4, 16, 16), (32, 4, 16, 16), causal=True)


def answer(explanation: Explanation, backend: str) -> Answer:
    return next(answer for answer in explanation.backends if answer.name == backend)


def lies(explanation: Explanation, reality: Any) -> list[str]:
    """Everything in an explanation that is not so."""
    call = explanation.call
    found = [
        f"{said.name}: {said.usable}, {said.reasons}, {said.cautions}, {call}"
        for said in explanation.backends
        if (reality.tried(said.name, call) and said.usable != reality.runs(said.name, call))
        or said.usable != (said.reasons == ())
        or any("our rules" in text or "no rule" in text for text in said.reasons + said.cautions)
    ]
    chosen = reality.chosen(call)
    return found if explanation.default == chosen else [*found, f"{explanation.default} is {chosen}, {call}"]


@pytest.mark.parametrize("device", HERE)
def test_explain_and_reality_agree_everywhere(
    device: str, reality: Any, product_of: Calls, specials_of: Calls
) -> None:
    # Every fifth: 5 divides none of the product's sizes, so that no factor is left out.
    calls = [*product_of(device)[::5], *specials_of(device)]
    assert len(calls) >= 300
    explanations = [explain(call) for call in calls]
    assert [lie for explanation in explanations for lie in lies(explanation, reality)] == []
    assert {explanation.default for explanation in explanations} >= {"flash", "math", None}
    assert all(explanation.ran == explanation.call for explanation in explanations)


S = (8, 4, 800, 32)
LARGE = AttentionCall(S, S, S, needs_grad=False)


@pytest.mark.parametrize(
    "call",
    [
        replace(LARGE, causal=True),
        replace(LARGE, key=(8, 2, 800, 32), value=(8, 2, 800, 32), gqa=True, mask=(8, 1, 1, 800)),
        replace(LARGE, key=(1, 4, 900, 32), value=(1, 4, 900, 32), mask=(4, 800, 900)),
        replace(LARGE, query=(4, 1600, 32), key=(4, 4000, 32), value=(4, 4000, 32)),
    ],
)
def test_a_large_call_is_answered_by_a_smaller_one(call: AttentionCall, reality: Any) -> None:
    explanation = explain(call)
    assert explanation.ran is not None
    assert math.prod(explanation.ran.query) < math.prod(call.query) / 10
    assert "smaller" in explanation.how
    assert lies(explanation, reality) == []


def test_sizes_beyond_any_memory_are_no_obstacle() -> None:
    size = (10**6, 64, 10**7, 128)
    explanation = explain(AttentionCall(size, size, size))
    assert explanation.default == "flash"
    assert "4 GiB" in answer(explanation, "math").cautions[0]
    assert answer(explanation, "flash").cautions == ()


def test_what_cannot_be_tried_is_said_to_be_unknown() -> None:
    size = (1, 1, 1, 10**12)
    explanation = explain(AttentionCall(size, size, size))
    assert (explanation.default, explanation.ran) == (None, None)
    assert "too large" in explanation.how
    assert answer(explanation, "flash").usable


def test_an_absent_device_is_answered_by_the_rules_alone() -> None:
    absent = "mps" if torch.cuda.is_available() else "cuda"
    call = replace(MAKEMORE, device=absent, dtype="bfloat16", capability=(9, 0))
    explanation = explain(call)
    assert (explanation.default, explanation.ran, explanation.device_present) == (None, None, False)
    assert explanation.call == call
    assert f"no {absent} device" in explanation.how
    if absent == "cuda":
        assert "capability 9.0" in explanation.how
    for said in explanation.backends:
        assert said.reasons == tuple(map(str, backend_spec(said.name).reasons_against(call)))


def test_the_line_to_paste_forces_the_default() -> None:
    line = explain(MAKEMORE).line
    assert line is not None
    scope: dict[str, Any] = {"F": F, "q": torch.zeros(1, 1, 4, 8, requires_grad=True)}
    exec(f"{line}\n    out = F.scaled_dot_product_attention(q, q, q)", scope)
    assert "Flash" in scope["out"].grad_fn.name()
    with pytest.raises(RuntimeError):
        exec(f"{line}\n    F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)", scope)


def test_where_nothing_runs_there_is_no_line_and_no_default() -> None:
    explanation = explain(replace(MAKEMORE, mask=(16, 16), dropout_p=0.5))
    assert (explanation.default, explanation.line) == (None, None)
    assert "call fails" in explanation.how
    assert "math, which rejects attn_mask" in explanation.how


def test_flash_on_the_cpu_is_called_what_it_is() -> None:
    assert "tiled CPU kernel" in answer(explain(MAKEMORE), "flash").about
    assert "CPU kernel" not in answer(explain(replace(MAKEMORE, device="cuda")), "flash").about


def test_all_reasons_are_told_at_once() -> None:
    size = (4, 16, 8)
    call = AttentionCall(
        size, size, (4, 16, 9), mask=(16, 16), mask_dtype="float32", mask_needs_grad=True, dropout_p=0.5
    )
    reasons = answer(explain(call), "flash").reasons
    assert len(reasons) == 4
    for words in ("not all 4-D", "9 channels", "gradient", "dropout_p = 0.5"):
        assert sum(words in reason for reason in reasons) == 1


def with_rules_of_flash(rules: tuple[Rule, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    changed = dict(backends()) | {"flash": replace(backend_spec("flash"), rules=rules)}
    monkeypatch.setattr("flashmore.backends.explain.backends", lambda: changed)


def test_torch_is_believed_more_than_a_rule_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmore.specs.RULES", ())
    said = answer(explain(replace(MAKEMORE, dropout_p=0.5)), "flash")
    assert not said.usable
    assert torch.__version__ in said.reasons[0]


def test_torch_is_believed_more_than_a_rule_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Rule(on("cpu", "flash"), lambda call: call.causal, "it is causal", "do not be")
    with_rules_of_flash((*backend_spec("flash").rules, wrong), monkeypatch)
    said = answer(explain(MAKEMORE), "flash")
    assert said.usable
    assert "it is causal" in said.cautions[0]


def test_explaining_leaves_no_trace() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    explain(replace(MAKEMORE, dropout_p=0.5, deterministic=True))
    explain(replace(MAKEMORE, dropout_p=0.5, needs_grad=False))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.is_grad_enabled()
    q = torch.zeros(1, 1, 4, 8, requires_grad=True)
    assert "Flash" in F.scaled_dot_product_attention(q, q, q).grad_fn.name()  # type: ignore[union-attr]
    F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)  # math is not switched off either


def test_an_explanation_is_plain_json(specials_of: Calls) -> None:
    for call in specials_of("cpu")[::20]:
        document = json.loads(json.dumps(explain(call).to_json()))
        assert [backend["name"] for backend in document["backends"]] == list(backends())
        assert {"call", "device_present", "default", "line"} <= set(document)


def test_tensors_are_described_as_they_are(specials_of: Calls, reality: Any) -> None:
    for call in specials_of("cpu"):
        q, k, v, *masks = reality.tensors(call)
        mask = masks[0] if masks else None
        described = describe_call(
            q, k, v, mask=mask, causal=call.causal, dropout_p=call.dropout_p, gqa=call.gqa
        )
        unit = call.mask_unit_stride or call.mask == ()
        assert described == replace(call, deterministic=False, mask_unit_stride=unit)


def test_a_mask_that_requires_a_gradient_does_so_without_grad_mode() -> None:
    q = torch.zeros(1, 1, 4, 8)
    with torch.no_grad():
        described = describe_call(q, q, q, mask=torch.zeros(4, 4, requires_grad=True))
    assert described.mask_needs_grad
    assert not answer(explain(described), "flash").usable


def test_a_mask_of_one_dimension_is_refused_with_the_reason() -> None:
    q = torch.zeros(1, 1, 4, 8)
    with pytest.raises(BackendUnavailable, match="second-to-last dimension"):
        attention(q, q, q, backend="sdpa", mask=torch.ones(4, dtype=torch.bool))


def in_float64(call: AttentionCall, tensors: tuple[Tensor, ...]) -> Tensor:
    """Attention by its definition."""
    q, k, v, *masks = tensors
    if call.gqa and not call.leads_equal:
        k, v = (t.repeat_interleave(q.size(-3) // t.size(-3), dim=-3) for t in (k, v))
    scores = q.double() @ k.double().mT / math.sqrt(call.head_dim)
    for mask in masks:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    if call.causal:
        scores = scores.masked_fill(torch.ones_like(scores).tril() == 0, -math.inf)
    return scores.softmax(dim=-1) @ v.double()


TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Far above rounding and far below what a misread mask does."""


def test_what_is_usable_without_a_caution_is_right_forward_and_backward(
    reality: Any, product_of: Calls, specials_of: Calls
) -> None:
    calls = [call for call in product_of("cpu")[::3] + specials_of("cpu") if call.dropout_p == 0]
    checked = 0
    for call in (replace(call, needs_grad=True) for call in calls):
        tensors = reality.tensors(call)
        truth = in_float64(call, tensors)
        wanted = [truth, *torch.autograd.grad(truth.sin().sum(), tensors[:3])]
        for said in explain(call).backends:
            if not said.usable or any("misreads" in caution for caution in said.cautions):
                continue
            out = reality.compute(said.name, call, tensors)
            found = [out, *torch.autograd.grad(out.double().sin().sum(), tensors[:3])]
            pairs = zip(found, wanted, strict=True)
            worst = max((answer.double() - right).abs().max().item() for answer, right in pairs)
            assert worst <= TOLERANCE[call.dtype] * max(1.0, truth.abs().max().item()), (said.name, call)
            checked += 1
    assert checked > 1000


def test_rules_are_about_kernels_that_explain_knows() -> None:
    known = set(everywhere(*tuple(backends())))
    assert {kernel for rule in RULES for kernel in rule.kernels} <= known
