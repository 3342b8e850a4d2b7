"""A test holds for right rewrites in every family of cases, and fails for each known wrong one."""

from collections.abc import Callable
from itertools import count

import pytest

from flashmore.upgrade.find import find_sites
from flashmore.upgrade.site import Fragment, Input, Site
from flashmore.upgrade.verify.result import Verification
from flashmore.upgrade.verify.verifier import Verifier

Q = Input("q", "q", "tensor", ("B", "H", "L", "D"))
K = Input("k", "k", "tensor", ("B", "H", "L", "D"))
V = Input("v", "v", "tensor", ("B", "H", "L", "D"))
KS = Input("k", "k", "tensor", ("B", "H", "S", "D"))
VS = Input("v", "v", "tensor", ("B", "H", "S", "E"))
TRIL = Input("tril", "self.tril", "mask", ("M", "M"), "float", "lower triangular")
DROP = Input("drop", "self.drop", "dropout", None)
BOOL = Input("mask", "mask", "mask", ("B", "1", "1", "S"), "bool")
ADDED = Input("mask", "mask", "mask", ("B", "1", "L", "S"), "float", "0/-inf additive")
ADDITIVE = Input("mask", "mask", "mask", ("B", "1", "1", "S"), "float", "additive")
KEPT = Input("mask", "mask", "mask", ("B", "1", "1", "S"), "bool", "True hides, every row keeps a key")

SCORES = "s = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))"
SOFTMAX = "w = F.softmax(s, dim=-1)"
PLAIN = (SCORES, SOFTMAX, "return w @ v")
CAUSAL = (SCORES, "T = q.size(2)", "s = s.masked_fill(tril[:T, :T] == 0, float('-inf'))", SOFTMAX)
SDPA = "return F.scaled_dot_product_attention(q, k, v"


def fragment(inputs: tuple[Input, ...], old: tuple[str, ...], new: tuple[str, ...]) -> Fragment:
    def source(name: str, lines: tuple[str, ...]) -> str:
        names = ", ".join(given.name for given in inputs)
        return f"def {name}({names}):\n" + "".join(f"    {line}\n" for line in lines)

    return Fragment(inputs, source("old", old), source("new", new))


NUMBER = count()
Verify = Callable[..., Verification]


@pytest.fixture
def verification(verifier: Verifier) -> Verify:
    """Tests new lines against old ones."""

    def verify(inputs: tuple[Input, ...], old: tuple[str, ...], *new: str) -> Verification:
        made = fragment(inputs, old, new)
        path = f"{next(NUMBER)}.py"  # the tests of one file have a limit together
        return verifier.verify(Site(path, 1, 3, "f", "rewritten", "", fragment=made))

    return verify


RIGHT = {
    "no mask, cross attention": ((Q, KS, VS), PLAIN, (f"{SDPA})",)),
    "no scale": ((Q, KS, VS), ("w = (q @ k.mT).softmax(-1)", "return w @ v"), (f"{SDPA}, scale=1.0)",)),
    "causal by a buffer": ((Q, K, V, TRIL), (*CAUSAL, "return w @ v"), (f"{SDPA}, is_causal=True)",)),
    "dropout module": (
        (Q, KS, VS, DROP),
        (SCORES, SOFTMAX, "return drop(w) @ v"),
        (f"{SDPA}, dropout_p=drop.p if drop.training else 0.0)",),
    ),
    "functional dropout that always trains": (
        (Q, KS, VS), (SCORES, SOFTMAX, "return F.dropout(w, 0.2) @ v"), (f"{SDPA}, dropout_p=0.2)",)
    ),
    "functional dropout with a probability and a flag": (
        (Q, KS, VS, Input("p", "self.p", "number", None), Input("t", "self.training", "flag", None)),
        (SCORES, SOFTMAX, "return F.dropout(w, p=p, training=t) @ v"),
        (f"{SDPA}, dropout_p=p if t else 0.0)",),
    ),
    "bool mask that hides, -inf": (
        (Q, KS, VS, BOOL),
        (SCORES, "s = s.masked_fill(mask, float('-inf'))", SOFTMAX, "return w @ v"),
        (f"{SDPA}, attn_mask=~mask)",),
    ),
    "additive mask": ((Q, KS, VS, ADDED), (SCORES, "s = s + mask", SOFTMAX, "return w @ v"),
        (f"{SDPA}, attn_mask=mask)",)),
    "finite fill where every row keeps a key": (
        (Q, KS, VS, KEPT),
        (SCORES, "s = s.masked_fill(mask, -1e9)", SOFTMAX, "return w @ v"),
        (f"{SDPA}, attn_mask=~mask)",),
    ),
    "learned bias": (
        (Q, KS, VS, Input("bias", "self.bias", "bias", ("1", "H", "L", "S"))),
        (SCORES, "s = s + bias", SOFTMAX, "return w @ v"),
        (f"{SDPA}, attn_mask=bias)",),
    ),
    "learned temperature": (
        (Q, KS, VS, Input("t", "self.temperature", "scale", ())),
        ("s = (q @ k.mT) * t.exp()", SOFTMAX, "return w @ v"),
        ("return F.scaled_dot_product_attention(q * t.exp(), k, v, scale=1.0)",),
    ),
    "learned divisor": (
        (Q, KS, VS, Input("t", "self.temperature", "scale", ())),
        ("s = (q @ k.mT) / t", SOFTMAX, "return w @ v"),
        ("return F.scaled_dot_product_attention(q / t, k, v, scale=1.0)",),
    ),
    "additive mask of any dtype, guarded against float16 autocast": (
        (Q, KS, VS, ADDITIVE),
        (SCORES, "s = s + mask", SOFTMAX, "return w @ v"),
        (
            "if not torch.is_autocast_enabled('cpu') or torch.get_autocast_dtype('cpu') != torch.float16:",
            "    low = max(torch.finfo(q.dtype).min, torch.finfo(torch.bfloat16).min)",
            f"    {SDPA}, attn_mask=mask.to(q.dtype).clamp(min=low))",
            SCORES, "s = s + mask", SOFTMAX, "return w @ v",
        ),
    ),
    "an additive mask and a bool mask that hides": (
        (Q, KS, VS, ADDITIVE, Input("hidden", "hidden", "mask", ("B", "1", "1", "S"), "bool", "True hides")),
        (SCORES, "s = (s + mask).masked_fill(hidden, float('-inf'))", SOFTMAX, "return w @ v"),
        (
            "if not torch.is_autocast_enabled('cpu') or torch.get_autocast_dtype('cpu') != torch.float16:",
            "    low = max(torch.finfo(q.dtype).min, torch.finfo(torch.bfloat16).min)",
            "    mask = mask.to(q.dtype).clamp(min=low).masked_fill(hidden, float('-inf'))",
            f"    {SDPA}, attn_mask=mask)",
            SCORES, "s = (s + mask).masked_fill(hidden, float('-inf'))", SOFTMAX, "return w @ v",
        ),
    ),
    "softmax in float32 and back": (
        (Q, KS, VS),
        (SCORES, "w = F.softmax(s.float(), dim=-1, dtype=torch.float32).type_as(s)", "return w @ v"),
        (f"{SDPA})",),
    ),
    "heads folded into the batch, lifted to four dimensions": (
        tuple(Input(n, n, "tensor", ("N", length, "D")) for n, length in zip("qkv", "LSS", strict=True)),
        ("w = torch.bmm(q, k.transpose(1, 2)).mul(0.3).softmax(2)", "return torch.bmm(w, v)"),
        ("return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=0.3)[:, 0]",),
    ),
    "scaled in place": (
        (Q, KS, VS, Input("scale", "self.scale", "scale", None)),
        ("q.mul_(scale)", "w = (q @ k.mT).softmax(-1)", "return w @ v"),
        (f"{SDPA}, scale=scale)",),
    ),
    "grouped heads": (
        (Q, *(Input(n, n, "tensor", ("B", "1", "S", "D")) for n in "kv")),
        PLAIN,
        ("return F.scaled_dot_product_attention(q, k.expand(-1, q.size(1), -1, -1), "
         "v.expand(-1, q.size(1), -1, -1))",),
    ),
    "a mask that may be None, of unknown shape": (
        (Q, KS, VS, Input("mask", "mask", "mask", None, "bool", "optional")),
        (SCORES, "if mask is not None:", "    s = s.masked_fill(~mask, -math.inf)", SOFTMAX, "return w @ v"),
        (f"{SDPA}, attn_mask=mask)",),
    ),
    "channels first by einsum": (
        tuple(Input(n, n, "tensor", ("N", "D", length)) for n, length in zip("qkv", "LSS", strict=True)),
        ("s = torch.einsum('bct,bcs->bts', q * 0.5, k * 0.5)", SOFTMAX,
         "return torch.einsum('bts,bcs->bct', w, v)"),
        ("o = F.scaled_dot_product_attention(q.mT[None], k.mT[None], v.mT[None], scale=0.25)",
         "return o[0].mT"),
    ),
}  # fmt: skip


def test_rows_that_two_masks_hide_together_may_have_other_gradients(verifier: Verifier) -> None:
    source = (
        "import torch\n\n\ndef attend(q, k, v, bias):\n"
        "    t = k.shape[-2]\n    later = torch.ones(t, t, dtype=torch.bool, device=q.device).triu(1)\n"
        "    s = q @ k.transpose(-2, -1) / 8 + bias\n    s = s.masked_fill(later, float('-inf'))\n"
        "    return s.softmax(dim=-1) @ v\n"
    )
    (site,) = find_sites(source)
    found = verifier.verify(site)
    assert found.passed, found.why_not


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_rewrite_is_tested(name: str, verification: Verify) -> None:
    found = verification(RIGHT[name][0], RIGHT[name][1], *RIGHT[name][2])
    assert found.passed, found.why_not
    compared = {tensor.name for case in found.cases for tensor in case.tensors if tensor.error is not None}
    expected = {f"d {given.source}" for given in RIGHT[name][0] if given.role in ("tensor", "bias")}
    assert {"out", *expected} <= compared


WRONG = {
    "a learned divisor that is slightly another one": (
        (Q, KS, VS, Input("t", "self.temperature", "scale", ())),
        ("s = (q @ k.mT) / t", SOFTMAX, "return w @ v"),
        "return F.scaled_dot_product_attention(q / t, k, v, scale=1.0001)",
    ),
    "a learned divisor without a gradient": (
        (Q, KS, VS, Input("t", "self.temperature", "scale", ())),
        ("s = (q @ k.mT) / t", SOFTMAX, "return w @ v"),
        "return F.scaled_dot_product_attention(q / t.detach(), k, v, scale=1.0)",
    ),
    "the scale is missing": ((Q, KS, VS), ("w = (q @ k.mT).softmax(-1)", "return w @ v"), f"{SDPA})"),
    "a scale too much": ((Q, KS, VS), PLAIN, f"{SDPA}, scale=1.0)"),
    "is_causal aligned at the other corner": (
        (Q, KS, VS),
        (SCORES, "L, S = s.shape[-2:]", "s = s + torch.full((L, S), float('-inf')).triu(1 + S - L)", SOFTMAX,
         "return w @ v"),
        f"{SDPA}, is_causal=True)",
    ),
    "the mask means the opposite": (
        (Q, KS, VS, BOOL), (SCORES, "s = s.masked_fill(mask, float('-inf'))", SOFTMAX, "return w @ v"),
        f"{SDPA}, attn_mask=mask)",
    ),
    "the mask is forgotten": (
        (Q, KS, VS, ADDED), (SCORES, "s = s + mask", SOFTMAX, "return w @ v"), f"{SDPA})"
    ),
    "a finite fill becomes a bool mask, and a row is fully masked": (
        (Q, KS, VS, BOOL), (SCORES, "s = s.masked_fill(mask, -1e9)", SOFTMAX, "return w @ v"),
        f"{SDPA}, attn_mask=~mask)",
    ),
    "an additive -1e4 becomes a bool mask": (
        (Q, KS, VS, Input("mask", "mask", "mask", ("B", "1", "L", "S"), "float", "0/1")),
        (SCORES, "s = s + (1 - mask) * -1e4", SOFTMAX, "return w @ v"),
        f"{SDPA}, attn_mask=mask.bool())",
    ),
    "an additive finfo.min mask under bfloat16": (
        (Q, KS, VS, Input("mask", "mask", "mask", ("B", "1", "1", "S"), "float", "0/finfo.min additive")),
        (SCORES, "s = s + mask", SOFTMAX, "return w @ v"),
        f"{SDPA}, attn_mask=mask)",
    ),
    "a bound of bfloat16's for a float16 mask": (
        (Q, KS, VS, Input("mask", "mask", "mask", ("B", "1", "1", "S"), "float", "0/-inf additive")),
        (SCORES, "s = s + mask", SOFTMAX, "return w @ v"),
        f"{SDPA}, attn_mask=mask.clamp(min=torch.finfo(torch.bfloat16).min))",
    ),
    "a row fully masked by float32's lowest number, under float16 autocast": (
        (Q, KS, VS, ADDITIVE),
        (SCORES, "s = s + mask", SOFTMAX, "return w @ v"),
        f"low = max(torch.finfo(q.dtype).min, torch.finfo(torch.bfloat16).min)\n"
        f"    {SDPA}, attn_mask=mask.to(q.dtype).clamp(min=low))",
    ),
    "values in float32 beside queries in 16 bits": (
        (Q, KS, VS), (SCORES, "w = F.softmax(s.float(), dim=-1)", "return (w @ v).to(q.dtype)"),
        f"{SDPA}).to(q.dtype)",
    ),
    "a mask in float64": (
        (Q, KS, VS, ADDED), (SCORES, "s = s + mask", "return F.softmax(s, dim=-1).type_as(v) @ v"),
        f"{SDPA}, attn_mask=mask)",
    ),
    "a mask that blocks no gradient any more": (
        (Q, KS, VS, Input("bias", "self.bias", "bias", ("1", "H", "L", "S"))),
        (SCORES, "s = torch.where(bias > 0, s, bias.clamp(max=0) * 0 - 1.5)", SOFTMAX, "return w @ v"),
        "s = q @ k.mT / math.sqrt(q.size(-1))\n"
        "    fill = torch.where(bias > 0, torch.zeros_like(s), -1.5 - s.detach())\n"
        f"    {SDPA}, attn_mask=fill)",
    ),
    "a bias that learns no more": (
        (Q, KS, VS, Input("bias", "self.bias", "bias", ("1", "H", "L", "S"))),
        (SCORES, "s = s + bias", SOFTMAX, "return w @ v"),
        f"{SDPA}, attn_mask=bias.detach())",
    ),
    "a mask and is_causal, which MATH refuses": (
        (Q, K, V, Input("mask", "mask", "mask", ("B", "1", "1", "L"), "bool", "True keeps"), TRIL),
        (SCORES, "T = q.size(2)", "s = s.masked_fill(~(mask & (tril[:T, :T] == 1)), -1e30)", SOFTMAX,
         "return w @ v"),
        f"{SDPA}, attn_mask=mask, is_causal=True)",
    ),
    "dropout that stays on in evaluation": (
        (Q, KS, VS, DROP), (SCORES, SOFTMAX, "return drop(w) @ v"), f"{SDPA}, dropout_p=drop.p)"
    ),
    "dropout that is gone": ((Q, KS, VS, DROP), (SCORES, SOFTMAX, "return drop(w) @ v"), f"{SDPA})"),
    "dropout of another probability": (
        (Q, KS, VS, DROP), (SCORES, SOFTMAX, "return drop(w) @ v"),
        f"{SDPA}, dropout_p=0.2 if drop.training else 0.0)",
    ),
    "the model's mode instead of the dropout's": (
        (Q, KS, VS, DROP, Input("t", "self.training", "flag", None)),
        (SCORES, SOFTMAX, "return drop(w) @ v"),
        f"{SDPA}, dropout_p=drop.p if t else 0.0)",
    ),
    "a softmax in float32 that stays there": (
        (Q, KS, VS), (SCORES, SOFTMAX, "return w @ v"),
        "return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).float() + 0.0",
    ),
    "another layout": ((Q, KS, VS), PLAIN, f"{SDPA}).transpose(1, 2)"),
    "a softmax over the queries": (
        (Q, K, V), (SCORES, "w = F.softmax(s, dim=-2)", "return w @ v"), f"{SDPA})"
    ),
    "weights that are renormalised": (
        (Q, KS, VS), (SCORES, SOFTMAX, "return (w / (w.sum(-2, keepdim=True) + 1e-6)) @ v"), f"{SDPA})"
    ),
    "a scale that is a tensor": (
        (Q, KS, VS, Input("t", "self.scale", "scale", ("H", "1", "1"))),
        ("s = (q @ k.mT) * t", SOFTMAX, "return w @ v"),
        f"{SDPA}, scale=t)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rewrite_is_not_tested(name: str, verification: Verify) -> None:
    inputs, old, new = WRONG[name]
    found = verification(inputs, old, new)
    assert not found.passed
    assert any(case.result == "differs" for case in found.cases), found.why_not


PRECISIONS = {
    f"{dtype}{autocast}"
    for dtype in ("float32", "float16", "bfloat16")
    for autocast in ("", " under float16 autocast", " under bfloat16 autocast")
} - {f"{dtype} under {dtype} autocast" for dtype in ("float16", "bfloat16")}


def test_every_dtype_is_tried_with_and_without_autocast(verification: Verify) -> None:
    inputs, old, new = RIGHT["no mask, cross attention"]
    tried = {
        case.name.split(", ")[1] for case in verification(inputs, old, *new).cases if case.result == "equal"
    }
    assert tried >= PRECISIONS | {"float16 under autocast", "bfloat16 under autocast"}


def test_a_dtype_that_the_original_refuses_demands_nothing_and_is_named(verification: Verify) -> None:
    lines = (SCORES, "s = s.masked_fill(mask, -1e9)", SOFTMAX, "return w @ v")
    found = verification((Q, KS, VS, KEPT), lines, f"{SDPA}, attn_mask=~mask)")
    assert found.passed
    assert "float16 is not used: the original rejects it, so it was not tried" in found.assumptions
    assert "bfloat16 is not used: the original rejects it, so it was not tried" not in found.assumptions


def test_the_case_that_differs_is_named(verification: Verify) -> None:
    inputs, old, new = WRONG["a mask and is_causal, which MATH refuses"]
    why = verification(inputs, old, new).why_not
    assert why is not None
    assert "MATH kernel" in why
    inputs, old, new = WRONG["an additive finfo.min mask under bfloat16"]
    why = verification(inputs, old, new).why_not
    assert why is not None
    assert "one row fully masked" in why
    assert "bfloat16" in why


def test_a_row_that_is_nan_by_hand_is_an_assumption_and_the_rest_is_compared(verification: Verify) -> None:
    inputs, old, new = RIGHT["bool mask that hides, -inf"]
    found = verification(inputs, old, *new)
    partly = [case for case in found.cases if "NaN" in case.detail]
    assert partly
    assert any("one row fully masked" in case.name for case in partly)
    assert any(tensor.verdict == "equal where the original is finite" for c in partly for tensor in c.tensors)
    assert any("masked are NaN now" in assumption for assumption in found.assumptions)


def test_what_differs_only_beside_a_nan_row_is_found(verification: Verify) -> None:
    inputs, old, _ = RIGHT["bool mask that hides, -inf"]
    only_there = "o = F.scaled_dot_product_attention(q, k, v, attn_mask=~mask)\n"
    wrong = "    return torch.where(mask.all(-1, keepdim=True).any(), o + 1, o)"
    assert not verification(inputs, old, only_there + wrong).passed


def test_lines_that_the_original_never_runs_test_nothing(verification: Verify) -> None:
    found = verification((Q, KS, VS), ("return q.view(7, 7, 7) @ v",), f"{SDPA})")
    assert not found.passed
    assert "rejects all synthetic inputs" in str(found.why_not)


def test_an_original_that_is_always_nan_tests_nothing(verification: Verify) -> None:
    found = verification((Q, KS, VS), ("return (q @ k.mT * math.inf).softmax(-1) @ v",), f"{SDPA})")
    assert not found.passed
    assert "nothing could be compared" in str(found.why_not)


def test_a_square_site_says_so_and_is_tried_square_alone(verification: Verify) -> None:
    inputs, old, new = RIGHT["causal by a buffer"]
    found = verification(inputs, old, *new)
    assert any("as many queries as keys" in assumption for assumption in found.assumptions)
    assert not any(case.name.startswith("L ") for case in found.cases)
