"""What tested rewrites bring: whole steps and their lines alone, with intervals and verdicts.

Only what was tested is measured. The user's program runs in a child process (`child`), in which
functions change their code between two blocks: both versions share weights, data and the machine's moods.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmore.measuring.statistics import Ratio, Spread, ratio, spread
from flashmore.upgrade.rules import RULES, rule
from flashmore.upgrade.site import Site
from flashmore.upgrade.trace.tracer import ENDED_ITSELF, SECONDS, Source, run_child, watch, watched_site

if TYPE_CHECKING:
    from flashmore.measuring.warnings import Code, MeasurementWarning

BEFORE, ALL, ALONE = "old step", "new step", "new step, {} alone"
"""The versions of a step."""
ATTENTION = "FM001"
RESULT = "gain.json"
"""The child's, in the folder of its request."""
FASTER_KERNELS = {"cpu": ("flash",), "cuda": ("flash", "cudnn", "efficient")}
"""On each device, the kernels that never write the (T, S) matrix."""
FEWEST_STEPS = 6
ADVICE: "dict[Code, str]" = {
    "too few samples": "let it run more steps, which all versions share, or give it more --seconds",
    "other load": "stop other processes (see top), or leave CPUs for them with $OMP_NUM_THREADS",
}
"""Where that of `flashmore.measuring.warnings` names options of other commands."""


@dataclass(frozen=True)
class BeforeAfter:
    """One thing in two versions: times with their ratio, and peak memory."""

    before_ms: Spread
    after_ms: Spread
    ratio: Ratio
    """Time before over time after: above 1, the rewrite is faster."""
    before_bytes: int | None = None
    after_bytes: int | None = None

    def __str__(self) -> str:
        times = f"{_ms(self.before_ms.median)} -> {_ms(self.after_ms.median)}"
        interval = f"{self.ratio.value:.2f} times, {self.ratio.low:.2f} to {self.ratio.high:.2f}"
        more = self.ratio.more_blocks
        text = f"{times} ({interval}: {self.ratio.verdict}"
        text += f", about {more:,} more blocks would decide)" if more else ")"
        if self.ratio.contradicts(self.before_ms.median / self.after_ms.median):
            text += "; the medians disagree, since the machine's speed changed between blocks"
        if self.before_bytes is None or self.after_bytes is None:
            return text
        return f"{text}, peak {_mib(self.before_bytes)} -> {_mib(self.after_bytes)}"


@dataclass(frozen=True)
class SiteGain:
    """The lines of one place alone, as often as a step runs them."""

    alone: BeforeAfter | None
    """None where the run never came by."""
    calls: int = 0
    kernel: str | None = None
    """Which kernel of scaled_dot_product_attention now runs."""
    why_not_faster: tuple[str, ...] = ()
    """Every reason against the kernels that are usually faster."""

    @property
    def slower(self) -> bool:
        """Whether the rewrite is slower, and surely so."""
        return self.alone is not None and self.alone.ratio.verdict == "slower"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What a person reads of one place."""
        if self.alone is None:
            return ["gain not measured: these lines ran too rarely"]
        lines = [f"these lines alone, {self.calls} call{'s' * (self.calls != 1)} a step: {self.alone}"]
        if self.kernel is not None:
            lines.append(f"kernel that runs now: {self.kernel}")
        return [*lines, *(f"not {reason}" for reason in self.why_not_faster)]


@dataclass(frozen=True)
class RuleGain:
    """What the rewrites of one rule bring to a step without the others."""

    code: str
    step: BeforeAfter | None
    """None where there were too few steps."""

    @property
    def slower(self) -> bool:
        """Whether the step is slower, and surely so."""
        return self.step is not None and self.step.ratio.verdict == "slower"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What a person reads of one place."""
        return ["gain not measured: too few steps" if self.step is None else f"a step with it: {self.step}"]


@dataclass(frozen=True)
class Gain:
    """What all tested rewrites together bring to a step, each rule alone, and each place to its own lines."""

    whole: str
    """What a step is here."""
    step: BeforeAfter | None
    """None where something went wrong, or where there were too few steps."""
    share: float | None
    """Attention's share of the step before."""
    sites: tuple[SiteGain | RuleGain, ...]
    """Of a place whose lines run only once, the gain of its rule."""
    problem: str | None = None
    environment: Mapping[str, Any] | None = None
    """Where it was measured; see `flashmore.measuring.environment`."""
    warnings: "tuple[MeasurementWarning, ...]" = ()
    rules: tuple[RuleGain, ...] = ()
    """Where there are several, the one that brings most first."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What a person reads of the whole step."""
        lines = []
        if self.step is not None:
            lines.append(f"{self.whole}{', all rules' if self.rules else ''}: {self.step}")
        for each in self.rules:
            told = "too few steps" if each.step is None else each.step
            lines.append(f"  {each.code} {rule(each.code).name} alone: {told}")
        if self.share is not None:
            lines.append(f"attention took {100 * self.share:.0f} % of the old step")
        if self.problem is not None:
            lines.append(f"not measured: {self.problem}" if self.step is None else f"problem: {self.problem}")
        lines += [f"warning: {one['code']}: {one['message']}; {one['advice']}" for one in self.warnings]
        return lines


def measure_gain(
    sites: Sequence[Site],
    rewriting: Callable[[Sequence[Site]], Mapping[Path, str]],
    source: Source,
    *,
    seconds: float = SECONDS,
) -> Gain:
    """Measure what rewrites bring to the user's example or script.

    Args:
        sites: those that passed their test, each with a fragment.
        rewriting: the files in which some of them are rewritten, with their whole new sources.
        source: what to run. An example gives steps of forward and backward; a script is timed between two
            steps of its own optimizer, with each version of the code in turn. Nothing is written.
        seconds: how long all of it may take.
    """
    again = [site for site in sites if not rule(site.code).setup]
    with tempfile.TemporaryDirectory(prefix="flashmore-") as name:
        folder = Path(name)
        request: dict[str, Any] = {
            "sites": [
                {
                    "code": site.code,
                    "watched": watched_site(site),
                    "fragment": asdict(site.fragment),
                }
                for site in again
                if site.fragment is not None
            ],
            "variants": _variants(sites, rewriting),
            "optimizers": [
                (str(Path(site.path).resolve()), site.line, site.end_line)
                for site in sites
                if rule(site.code).setup
            ],
            "example": source.example,
            "run": list(source.run),
            "folder": str(folder),
            "captured": str(folder),
        }
        if source.example is None:
            status = watch(again, source, folder, seconds)
            request["calls"] = status["calls"] or [1] * len(again)
        said = run_child("flashmore.benchmark.gain.child", request, folder, seconds)
        try:
            result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        except OSError:
            result = {"problem": said or ENDED_ITSELF}
    gain = gain_of(result, len(again))
    found = iter(gain.sites)
    alone = {each.code: each for each in gain.rules}
    return replace(
        gain,
        sites=tuple(
            alone.get(site.code, RuleGain(site.code, None if alone else gain.step))
            if rule(site.code).setup
            else next(found)
            for site in sites
        ),
    )


def _variants(
    sites: Sequence[Site], rewriting: Callable[[Sequence[Site]], Mapping[Path, str]]
) -> list[dict[str, Any]]:
    """All rules together, and each alone where there are several; see `variants.Variant`."""
    codes = sorted({site.code for site in sites})
    sets = {ALL: codes} | ({ALONE.format(code): [code] for code in codes} if len(codes) > 1 else {})
    return [
        {
            "name": name,
            "rewritten": {
                str(path.resolve()): text
                for path, text in rewriting(
                    [site for site in sites if site.code in some and not rule(site.code).setup]
                ).items()
            },
            "fuses": any(rule(code).setup for code in some),
        }
        for name, some in sets.items()
    ]


def gain_of(result: Mapping[str, Any], count: int) -> Gain:
    """Numbers from what the child process measured."""
    if "samples_ms" not in result:
        return Gain("", None, None, tuple(SiteGain(None) for _ in range(count)), result["problem"])
    samples, peaks = result["samples_ms"], result["peak_bytes"]
    step = _before_after(samples, peaks, BEFORE, ALL)
    device = str(result["device"]).partition(":")[0]
    fast = FASTER_KERNELS.get(device, ())
    sites = tuple(_site_gain(n, said, samples, peaks, fast) for n, said in enumerate(result["sites"]))
    attentions = (
        site.alone.before_ms.median
        for site, said in zip(sites, result["sites"], strict=True)
        if said["code"] == ATTENTION and site.alone is not None
    )
    share = sum(attentions) / step.before_ms.median if step is not None else 0.0
    problem = result["problem"]
    if step is None and problem is None:
        problem = f"too few steps to time: each version needs at least {FEWEST_STEPS}"
    from flashmore.measuring.environment import on_battery  # imports torch
    from flashmore.measuring.warnings import warnings_about

    others, threads = result["others"], result["threads"]
    found = warnings_about(samples, others=others, threads=threads, battery=on_battery())
    for each in found:
        each["advice"] = ADVICE.get(each["code"], each["advice"])
    return Gain(
        result["whole"], step, share or None, sites, problem, result["environment"],
        tuple(found), _rule_gains(samples, peaks),
    )  # fmt: skip


def _rule_gains(samples: Mapping[str, Any], peaks: Mapping[str, Any]) -> tuple[RuleGain, ...]:
    names = {each.code: ALONE.format(each.code) for each in RULES}
    found = [
        RuleGain(code, _before_after(samples, peaks, BEFORE, name))
        for code, name in names.items()
        if name in samples
    ]
    return tuple(sorted(found, key=lambda each: -each.step.ratio.value if each.step is not None else 0.0))


def _site_gain(
    number: int,
    said: Mapping[str, Any],
    samples: Mapping[str, Any],
    peaks: Mapping[str, Any],
    fast: Sequence[str],
) -> SiteGain:
    alone = _before_after(samples, peaks, f"old lines {number}", f"new lines {number}")
    kernel = said["kernel"]
    if kernel is None:
        return SiteGain(alone, said["calls"])
    reasons: list[str] = []
    if kernel["name"] not in fast:
        reasons = [f"{name}: {why}" for name in fast for why in kernel["against"].get(name, [])]
    return SiteGain(alone, said["calls"], kernel["name"], tuple(reasons))


def _before_after(
    samples: Mapping[str, Any], peaks: Mapping[str, Any], before: str, after: str
) -> BeforeAfter | None:
    if before not in samples or min(len(samples[before]), len(samples[after])) < FEWEST_STEPS:
        return None
    times = samples[before], samples[after]
    return BeforeAfter(spread(times[0]), spread(times[1]), ratio(*times), peaks.get(before), peaks.get(after))


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms"


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
