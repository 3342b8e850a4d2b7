"""A record and its parts as types, which validate it; `record.schema.json` is generated from them."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from flashmore.call import Pass
from flashmore.measuring.statistics import Verdict
from flashmore.measuring.warnings import Code
from flashmore.speedups import Exactness


def says(description: str, **bounds: Any) -> Meta:
    """The description of a field, and the bounds of its value."""
    return Meta(description=description, **bounds)


Blocks = Annotated[list[list[Annotated[float, Meta(gt=0)]]], says("milliseconds, in blocks")]
WhyNot = Annotated[str | None, says("why it was not timed")]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Notes = Annotated[list[str], says("deviations from the request, and why")]
TimeBudget = Annotated[float, says("whatever would have exceeded it was left out")]
Dtype = Annotated[str, says("of q, k and v")]
Causal = Annotated[bool, says("whether a query attends only to keys up to its own position")]
Keys = Annotated[int, says("keys, and queries where L is null")]


class Part(Struct, forbid_unknown_fields=True):
    """A part of a record."""


def _joined(one: type[Part], other: type[Part]) -> Any:
    """A base class with the fields of two parts: a Struct inherits from only one."""
    fields = [(field.name, field.type, field.default) for field in msgspec.structs.fields(other)]
    return msgspec.defstruct(one.__name__ + other.__name__, fields, bases=(one,), kw_only=True)


def _require_agreement(ok: bool, why_not: str | None, samples: list[list[float]], *numbers: object) -> None:
    if any(ok != timed for timed in (why_not is None, bool(samples), *(one is not None for one in numbers))):
        raise ValueError("`ok`, `why_not`, the time and the samples contradict each other")


class Environment(Part):
    """Where a record was measured."""

    device: Annotated[Literal["cpu", "cuda", "mps"], says("type of the device")]
    device_name: Annotated[str, says("of the device: the GPU, or the CPU")]
    capability: Annotated[list[int] | None, says("compute capability of an NVIDIA GPU, major and minor")]
    cpu_name: Annotated[str, says("as reported by the system")]
    cpu_count: Annotated[int | None, says("logical CPUs")]
    threads: Annotated[int, says("torch's intra-op threads", ge=1)]
    memory_bytes: Annotated[int | None, says("main memory")]
    os: Annotated[str, says("the system and its version")]
    python: Annotated[str, says("its version")]
    torch: Annotated[str, says("its version and build")]
    cuda: Annotated[str | None, says("version that torch was built with; null in a CPU build")]
    cudnn: Annotated[int | None, says("version, null if unused; it affects the default backend on CUDA")]
    commit: Annotated[str | None, says("of flashmore, with + if modified; null outside a checkout")]
    clock_resolution_s: Annotated[float, says("resolution of the clock")]
    ranks: Annotated[Annotated[int, Meta(gt=1)] | UnsetType, says(
        "processes of torchrun that shared each batch; if missing, 1")] = UNSET  # fmt: skip
    fuse_attention: Annotated[int | UnsetType, says(
        "times Inductor rewrote a pattern into SDPA, where compile is on")] = UNSET  # fmt: skip


class Warned(Part):
    """A possible problem with a measurement."""

    code: Annotated[Code, says("from a closed list")]
    message: Annotated[str, says("what was seen")]
    advice: Annotated[str, says("what to do about it")]


class Envelope(Part):
    """What every record has besides its `kind`."""

    schema: Annotated[Literal["flashmore/record"], says("what kind of document this is")]
    version: Annotated[Literal[3], says("of this schema")]
    created: Annotated[str, says("UTC, ISO 8601")]
    command: Annotated[list[str], says("the command that made it")]
    complete: Annotated[bool, says("false if the measurement was interrupted")]
    environment: Annotated[Environment, says("where it was measured")]
    warnings: Annotated[list[Warned], says("possible problems with it")]


class Spread(Part):
    """Median and quartiles of a time."""

    median: Annotated[float, says("of all samples of all blocks", gt=0)]
    low: Annotated[float, says("first quartile", ge=0)]
    high: Annotated[float, says("third quartile", ge=0)]


class Ratio(Part):
    """How many times faster one variant is than another."""

    of: Annotated[str, says("the baseline variant")]
    to: Annotated[str, says("the other variant")]
    value: Annotated[float, says("time of `of` over time of `to`: above 1, `to` is faster")]
    low: Annotated[float, says("lower end of the 95 % interval")]
    high: Annotated[float, says("upper end of the 95 % interval")]
    verdict: Annotated[Verdict, says("of `to`: no difference if the whole interval is within the "
        "equivalence, faster or slower if it excludes 1")]  # fmt: skip
    more_blocks: Annotated[int, says("estimate of how many more blocks would decide; 0 if decided", ge=0)] = 0
    equivalence: Annotated[Annotated[float, Meta(gt=0)] | UnsetType, says(
        "differences up to this percentage count as none")] = UNSET  # fmt: skip


class Communication(Part):
    """What exchanging gradients or weights costs a step of several ranks."""

    share: Annotated[float, says("of a step: 1 − time without exchange / time with it; noise may make it "
        "negative")]  # fmt: skip
    low: Annotated[float, says("lower end of its 95 % interval")]
    high: Annotated[float, says("upper end of its 95 % interval")]
    samples_ms: Annotated[Blocks, says("of the same step without any exchange: milliseconds, in blocks")]


OfRanks = Annotated[Communication | UnsetType, says("what communication costs; missing with a single rank, "
    "if the model is sharded, or if it was not timed")]  # fmt: skip


class StepVariant(Part):
    """The training step with one backend."""

    name: str
    ok: Annotated[bool, says("ran, was timed, and its losses and gradients are within the error budget")]
    why_not: WhyNot
    budget_used: Annotated[Share | None, says("the largest error from float64 as a share of its budget; null "
        "where it failed or was not checked")]  # fmt: skip
    step_ms: Spread | None
    samples_ms: Blocks
    peak_bytes: Annotated[int | None, says(
        "of one step, gradients included, beyond the weights and the optimizer's moments")]  # fmt: skip
    communication: OfRanks = UNSET

    def __post_init__(self) -> None:
        _require_agreement(self.ok, self.why_not, self.samples_ms, self.step_ms)


class AtOneContext(Part):
    """Training steps at one context."""

    context: Annotated[int, says("T, positions per row")]
    batch: Annotated[int, says("rows per step")]
    attention_share: Annotated[float | None, says("time of attention alone, forward and backward in all "
        "layers, over the time of a step; both with the first variant that was timed")]  # fmt: skip
    attention_share_low: Annotated[float | None, says("lower end of its 95 % interval")]
    attention_share_high: Annotated[float | None, says("upper end of its 95 % interval")]
    attention_samples_ms: Blocks
    most_gain: Annotated[float | None, says("upper bound of the speed-up if attention took no time "
        "(Amdahl): 1 / (1 − attention_share)")]  # fmt: skip
    notes: Notes
    variants: list[StepVariant]
    ratios: list[Ratio]


class Step(_joined(Envelope, AtOneContext), tag_field="kind", tag="step"):  # type: ignore[call-arg, misc]
    """A record of `flashmore bench step`."""

    config: Annotated[dict[str, Any], says("data, model and training parameters of every step")]
    further_contexts: list[AtOneContext]


class Setting(Part):
    """An attention call except for T."""

    B: Annotated[int, says("batch")]
    H: Annotated[int, says("query heads")]
    D: Annotated[int, says("channels per head")]
    dtype: Dtype
    causal: Causal
    L: Annotated[int | None, says("queries; null: T")] = None
    H_kv: Annotated[int | UnsetType, says("heads of k and v; if missing, H")] = UNSET
    D_v: Annotated[int | UnsetType, says("channels per value; if missing, D")] = UNSET
    mask: Annotated[str, says("`none`, which it is if missing, `padding` (boolean, of keys), or `bool` or "
        "`float` with its dimensions")] = "none"  # fmt: skip
    dropout_p: Annotated[float, says("dropout probability on the weights; if missing, 0")] = 0.0
    passes: Annotated[Pass, says("what was compared, `forward` in inference; if missing, both")] = "both"


class Row(Setting, kw_only=True, rename={"which": "pass"}):
    """One pass of one backend at one length."""

    backend: str
    T: Keys
    which: Annotated[Pass, says("forward keeps what backward needs, except in inference; both is their sum")]
    ok: Annotated[bool, says("ran, was timed, and its answer is within the error budget")]
    why_not: WhyNot
    time_ms: Spread | None
    cold_ms: Annotated[float | None, says(
        "wall-clock time of the first call of this shape: plans, allocations, loading")] = None  # fmt: skip
    samples_ms: Blocks
    tflop_per_s: Annotated[float | None, says("10¹² operations per second, counted as 2·B·H·L·T·(D + D_v) "
        "forward, half of that when causal, and 2.5 times the forward count backward")]  # fmt: skip
    peak_bytes: Annotated[int | None, says("beyond what was allocated before this pass")]
    error: Annotated[float | None, says("difference from float64 for the tensor nearest to its budget, among "
        "out, or dq, dk and dv, or all four; null if it is not finite or was not measured")]  # fmt: skip
    error_budget: Annotated[float | None, says("of the same tensor")]
    checked_pairs: Annotated[int | None, says("how many of the B·H pairs of batch item and query head were "
        "compared with float64: the last ones, if not all fit")] = None  # fmt: skip

    def __post_init__(self) -> None:
        _require_agreement(self.ok, self.why_not, self.samples_ms, self.time_ms, self.tflop_per_s)


class SettingRatio(_joined(Setting, Ratio), kw_only=True):  # type: ignore[call-arg, misc]
    """How many times faster one backend is than another at one length."""

    T: Keys
    pairs: Annotated[int | UnsetType, says("pairs of blocks that were compared")] = UNSET


class Crossover(Setting, kw_only=True):
    """Where fused attention becomes faster."""

    T: Annotated[int | None, says("from which fused attention is faster; null: it is not at the longest T")]


class Attention(Envelope, tag_field="kind", tag="attention", rename={"first": "crossover_T"}):
    """A record of `flashmore bench attention`."""

    first: Annotated[int | None, says("T from which fused attention is faster, in the first setting; "
        "null: it is not at the longest T, or there was nothing to compare (no ratios)")]  # fmt: skip
    crossovers: Annotated[list[Crossover], says("the same for every setting")]
    memory_budget_bytes: Annotated[int, says("whatever was estimated to exceed it was left out")]
    time_budget_s: TimeBudget
    ratios: Annotated[list[SettingRatio], says(
        "of the passes that were compared, `manual` against each fused backend")]  # fmt: skip
    rows: list[Row]


class Problem(Part, kw_only=True):
    """Everything a choice depends on."""

    shape: Annotated[tuple[int, int, int, int], says("(B, H, T, D)")]
    dtype: Dtype
    dropout_p: Annotated[float, says("dropout probability on the weights")]
    source: Annotated[int | None, says("number of keys; null: T")] = None
    kv_heads: Annotated[int | None, says("heads of k and v; null: H")] = None
    value_dim: Annotated[int | None, says("channels per value; null or missing: D")] = None
    causal: Causal = True
    mask: Annotated[
        bool | str, says("as of a setting; in older records, whether there was a boolean mask")
    ] = "none"
    passes: Annotated[Pass, says("what was timed, `forward` in inference")] = "both"
    compiled: Annotated[bool, says("whether the call was compiled")] = False
    backends: Annotated[list[str] | UnsetType, says("all backends of this version of flashmore")] = UNSET
    version: Annotated[int, says("of the measurement's method")]
    kind: Annotated[str, says("type of the device")]
    device: Annotated[str, says("name of the device")]
    threads: Annotated[int, says("torch's intra-op threads")]
    torch: Annotated[str, says("its version and build")]


class Candidate(Part):
    """One backend that may be chosen."""

    name: str
    time_ms: Annotated[Spread | None, says("of the problem's passes, once")]
    why_not: WhyNot
    samples_ms: Blocks
    ratio: Annotated[
        Ratio | None, says("time of the safe backend over this one's; null for the safe one")
    ] = None

    def __post_init__(self) -> None:
        if self.time_ms is None and self.why_not is None:
            raise ValueError("without `time_ms`, a `why_not` is required")


class Choose(Envelope, tag_field="kind", tag="choose"):
    """A record of `flashmore choose`."""

    chosen: Annotated[str, says("the safe backend, or the fastest of those that are faster than it")]
    measuring_s: Annotated[float, says("time spent measuring; 0 for a cached answer")]
    problem: Annotated[Problem, says("everything the choice depends on")]
    candidates: Annotated[list[Candidate], says("every backend")]


class Variant(Part, kw_only=True):
    """The training step with one set of speed-ups."""

    name: Annotated[str, says(
        "the speed-up added, `none` for the first variant, or `without` and the one left out")]  # fmt: skip
    speedups: Annotated[list[str], says("all enabled")]
    exactness: Annotated[Exactness, says("of all enabled ones together")]
    ok: Annotated[bool, says("ran, was timed, and has the plain loop's gradients and, if exact, its "
        "losses within the error budget")]  # fmt: skip
    why_not: WhyNot
    step_ms: Spread | None
    samples_ms: Blocks
    characters_per_s: Annotated[float | None, says("real characters, EOS included, at the median step")]
    ratio: Annotated[Ratio | None, says("time of the first variant over this one's")]
    before: Annotated[str, says(
        "name of the variant that it was added to; with one left out, of the full set")] = ""  # fmt: skip
    kept: Annotated[bool, says("false if a short trial found it slower than the one before: the next one was "
        "added without it")] = True  # fmt: skip
    ratio_before: Annotated[Ratio | None, says("time of the variant it was added to over this one's; with "
        "one left out, time of the full set over this one's")]  # fmt: skip
    first_step_seconds: Annotated[NotNegative | None, says("to decide, build, compile and run "
        "the first step; shorter the second time, because PyTorch caches compiled code on disk")]  # fmt: skip
    break_even_steps: Annotated[Annotated[int, Meta(ge=0)] | None, says("steps that make up for a longer "
        "first step than that of the variant it was added to; null: a step is not faster")]  # fmt: skip
    peak_bytes: Annotated[int | None, says("of one step, gradients included if allocated in each step, "
        "beyond the weights and the optimizer's moments")]  # fmt: skip
    budget_used: Annotated[Share | None, says("of an exact variant: the largest error of its first gradients "
        "and losses from float64 as a share of its budget")]  # fmt: skip
    loss_difference: Annotated[float | None, says("of a variant that is not exact: the mean of the last five "
        "checked losses less the plain loop's, in nats")]  # fmt: skip
    communication: OfRanks = UNSET

    def __post_init__(self) -> None:
        _require_agreement(self.ok, self.why_not, self.samples_ms, self.step_ms, self.characters_per_s)


class LeftOut(Part):
    """A speed-up without a variant."""

    name: Annotated[str, says("of the variant")]
    why: Annotated[str, says("the reason")]


class Ablation(Envelope, tag_field="kind", tag="ablation"):
    """A record of `flashmore bench ablation`."""

    config: Annotated[dict[str, Any], says("data, model and training parameters of every variant")]
    context: Annotated[int, says("T, positions per padded row")]
    batch: Annotated[int, says("items per step")]
    characters_a_step: Annotated[float, says("mean number of real characters per batch, EOS included")]
    checked_steps: Annotated[int, says("first steps whose losses were compared with the plain loop's")]
    time_budget_s: TimeBudget
    variants: Annotated[list[Variant], says("the plain loop, then one more speed-up at a time")]
    left_out_alone: Annotated[list[Variant], says("the full set without one; empty unless requested")]
    left_out: Annotated[list[LeftOut], says("speed-ups without a variant")]
    notes: Notes

    def __post_init__(self) -> None:
        timed = [variant for variant in self.variants if variant.ok]
        if any(variant.ratio is None or variant.ratio_before is None for variant in timed[1:]):
            raise ValueError("a variant after the first that was timed has no ratios")


Record = Step | Attention | Choose | Ablation


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of records."""
    (*_, record), parts = msgspec.json.schema_components([Envelope, Setting, Record])
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, "title": "A flashmore record", **record, "$defs": parts}
