"""What tested rewrites bring: whole steps and attention alone, before and after, with intervals and verdicts.

Only what was tested is measured. The user's program runs in a child process (`child`), in which
functions change their code between two blocks: both versions share weights, data and the machine's moods.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmore.benchmark.gain.child import RESULT
from flashmore.benchmark.gain.further import Further, worth_trying
from flashmore.measuring.statistics import Ratio, Spread, ratio, spread
from flashmore.upgrade.site import Site
from flashmore.upgrade.trace.tracer import ENDED_ITSELF, SECONDS, Source, run_child, watch, watched_site
from flashmore.upgrade.verify.child import fragment_to_json

if TYPE_CHECKING:
    from flashmore.measuring.warnings import MeasurementWarning

FASTER_KERNELS = {"cpu": ("flash",), "cuda": ("flash", "cudnn", "efficient")}
"""On each device, the kernels that never write the (T, S) matrix."""
FEWEST_STEPS = 6


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
    """Attention alone at one site, as often as a step calls it."""

    attention: BeforeAfter | None
    """None where the run never came by."""
    calls: int = 0
    kernel: str | None = None
    """Which kernel of scaled_dot_product_attention now runs."""
    why_not_faster: tuple[str, ...] = ()
    """Every reason against the kernels that are usually faster."""

    @property
    def slower(self) -> bool:
        """Whether the rewrite is slower, and surely so."""
        return self.attention is not None and self.attention.ratio.verdict == "slower"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What a person reads of one place."""
        if self.attention is None:
            return ["gain not measured: these lines ran too rarely"]
        lines = [f"attention alone, {self.calls} call{'s' * (self.calls != 1)} a step: {self.attention}"]
        if self.kernel is not None:
            lines.append(f"kernel that runs now: {self.kernel}")
        return [*lines, *(f"not {reason}" for reason in self.why_not_faster)]


@dataclass(frozen=True)
class Gain:
    """What all tested rewrites together bring to a step, and each to its own attention."""

    whole: str
    """What a step is here."""
    step: BeforeAfter | None
    """None where something went wrong, or where there were too few steps."""
    share: float | None
    """Attention's share of the step before."""
    sites: tuple[SiteGain, ...]
    further: tuple[Further, ...]
    problem: str | None = None
    environment: Mapping[str, Any] | None = None
    """Where it was measured; see `flashmore.measuring.environment`."""
    warnings: "tuple[MeasurementWarning, ...]" = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What a person reads of the whole step."""
        lines = []
        if self.step is not None:
            lines.append(f"{self.whole}: {self.step}")
        if self.share is not None:
            lines.append(f"attention took {100 * self.share:.0f} % of the old step")
        if self.problem is not None:
            lines.append(f"not measured: {self.problem}" if self.step is None else f"problem: {self.problem}")
        lines += [f"warning: {one['code']}: {one['message']}; {one['advice']}" for one in self.warnings]
        lines += [f"worth trying next: {one.title}: {one.how} ({one.page})" for one in self.further]
        return lines


def measure_gain(
    sites: Sequence[Site], rewritten: Mapping[Path, str], source: Source, *, seconds: float = SECONDS
) -> Gain:
    """Measure what rewrites bring to the user's example or script.

    Args:
        sites: those that passed their test, each with a fragment.
        rewritten: each file with its whole new source; nothing is written.
        source: what to run. An example gives steps of forward and backward; a script is timed between two
            steps of its own optimizer, every other one with the new code.
        seconds: how long all of it may take.
    """
    with tempfile.TemporaryDirectory(prefix="flashmore-") as name:
        folder = Path(name)
        request: dict[str, Any] = {
            "sites": [
                {"watched": watched_site(site), "fragment": fragment_to_json(site.fragment)}
                for site in sites
                if site.fragment is not None
            ],
            "rewritten": {str(path.resolve()): text for path, text in rewritten.items()},
            "example": source.example,
            "run": list(source.run),
            "folder": str(folder),
            "captured": str(folder),
        }
        if source.example is None:
            status = watch(sites, source, folder, seconds)
            request["calls"] = status["calls"] or [1] * len(sites)
        said = run_child("flashmore.benchmark.gain.child", request, folder, seconds)
        try:
            result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        except OSError:
            result = {"problem": said or ENDED_ITSELF}
    return gain_of(result, len(sites))


def gain_of(result: Mapping[str, Any], count: int) -> Gain:
    """Numbers from what the child process measured."""
    if "samples_ms" not in result:
        return Gain("", None, None, tuple(SiteGain(None) for _ in range(count)), (), result["problem"])
    samples, peaks = result["samples_ms"], result["peak_bytes"]
    step = _before_after(samples, peaks, "old step", "new step")
    device = str(result["device"]).partition(":")[0]
    fast = FASTER_KERNELS.get(device, ())
    sites = tuple(_site_gain(n, said, samples, peaks, fast) for n, said in enumerate(result["sites"]))
    alone = [site.attention.before_ms.median for site in sites if site.attention is not None]
    share = sum(alone) / step.before_ms.median if step is not None and alone else None
    problem = result["problem"]
    if step is None and problem is None:
        problem = f"too few steps to time: each version needs at least {FEWEST_STEPS}"
    from flashmore.measuring.environment import on_battery  # imports torch
    from flashmore.measuring.warnings import warnings_about

    others, threads = result["others"], result["threads"]
    warnings = tuple(warnings_about(samples, others=others, threads=threads, battery=on_battery()))
    further = worth_trying(device)
    return Gain(result["whole"], step, share, sites, further, problem, result["environment"], warnings)


def _site_gain(
    number: int,
    said: Mapping[str, Any],
    samples: Mapping[str, Any],
    peaks: Mapping[str, Any],
    fast: Sequence[str],
) -> SiteGain:
    attention = _before_after(samples, peaks, f"old attention {number}", f"new attention {number}")
    kernel = said["kernel"]
    if kernel is None:
        return SiteGain(attention, said["calls"])
    reasons: list[str] = []
    if kernel["name"] not in fast:
        reasons = [f"{name}: {why}" for name in fast for why in kernel["against"].get(name, [])]
    return SiteGain(attention, said["calls"], kernel["name"], tuple(reasons))


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
