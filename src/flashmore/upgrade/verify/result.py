"""What a test says: every case that was tried, each tensor's verdict, what was assumed; no torch."""

from dataclasses import dataclass
from typing import Literal

WHOLE = "the whole example with the rewritten file"
"""The case that runs all of the user's example; see `flashmore.upgrade.trace.whole`."""
MASKED_ROWS = "not compared: gradients of fully masked rows, which fused kernels compute differently"
Result = Literal["equal", "differs", "not compared", "skipped"]


@dataclass(frozen=True)
class TensorVerdict:
    """One tensor of one case: the output, or the gradient of something that goes in."""

    name: str
    """`out`, or `d` and the user's expression, such as `d self.bias`."""
    verdict: str
    """`equal`, `equal where the original is finite`, `not compared: the original is NaN`, or `differs: …`."""
    error: float | None = None
    """Largest absolute difference from the original expression in float64; None where nothing is compared."""
    budget: float | None = None
    """How large it may be; see `flashmore.measuring.accuracy`."""

    @property
    def good(self) -> bool:
        """Whether nothing speaks against the rewrite."""
        return not self.verdict.startswith("differs")


@dataclass(frozen=True)
class CaseResult:
    """One case: what was tried, and how it ended."""

    name: str
    """Such as `L ≠ S, random mask, float32, MATH kernel`."""
    result: Result
    detail: str = ""
    """Why it was skipped or what differs; empty where all is equal."""
    tensors: tuple[TensorVerdict, ...] = ()


Mode = Literal["training", "evaluation"]


@dataclass(frozen=True)
class Kernels:
    """The kernels that PyTorch selects for the new lines, as names of backends."""

    mode: Mode
    dtype: str
    cpu: str
    """As PyTorch selected it when the lines ran."""
    cuda: str
    """By the rules of `flashmore explain`, for a GPU of compute capability 8.0."""


@dataclass(frozen=True)
class Verification:
    """Whether a rewrite computes what the original computes, and how that is known."""

    passed: bool
    on: str
    """What it ran on: `synthetic tensors`, or what a run of the user's code saw."""
    cases: tuple[CaseResult, ...] = ()
    assumptions: tuple[str, ...] = ()
    """What has to hold in the user's program, and was not and could not be tried."""
    why_not: str | None = None
    """The first thing that speaks against it; None where it passed."""
    seconds: float = 0.0
    """Processor time of the processes that made it."""
    kernels: tuple[Kernels, ...] = ()
    """What the new lines run; empty if it did not pass, or on inputs of the user's."""

    @property
    def refuted(self) -> bool:
        """Whether a case was found in which the rewrite computes something else."""
        return self.count("differs") > 0

    def count(self, result: Result) -> int:
        """How many cases ended so."""
        return sum(case.result == result for case in self.cases)

    @property
    def unfused(self) -> bool:
        """Whether PyTorch selects its unfused kernel in every mode, so that nothing is gained."""
        return bool(self.kernels) and all(each.cpu == each.cuda == "math" for each in self.kernels)

    def kernels_line(self) -> str:
        """One line: the kernels of the new lines, in each mode if the modes differ."""
        told = {}
        for mode in dict.fromkeys(each.mode for each in self.kernels):
            of_mode = [each for each in self.kernels if each.mode == mode]
            cpu, cuda = (
                " or ".join(dict.fromkeys(getattr(each, device) for each in of_mode))
                for device in ("cpu", "cuda")
            )
            told[mode] = f"{cpu} on the CPU, {cuda} on CUDA"
        if len(set(told.values())) == 1:
            return next(iter(told.values()))
        return "; ".join(f"in {mode} {text}" for mode, text in told.items())

    def summary(self) -> str:
        """One line: what was tested and on what, or why not."""
        if not self.passed:
            return f"{'failed the test' if self.refuted else 'not tested'}: {self.why_not}"
        lines = [case for case in self.cases if case.name != WHOLE]
        tensors = sorted({tensor.name for case in lines for tensor in case.tensors}, key=_out_first)
        equal = self.count("equal")
        counts = f"{equal} case{'s' * (equal != 1)} equal"
        if (skipped := self.count("skipped")) > 0:
            counts += f", {skipped} rejected by the original"
        return f"tested on {self.on}: {counts}; compared {', '.join(tensors)}{self._whole()}"

    def _whole(self) -> str:
        whole = next((case for case in self.cases if case.name == WHOLE), None)
        if whole is None:
            return ""
        if whole.result != "equal":
            return f"; the whole example could not be compared: {whole.detail or whole.result}"
        weights = sum(tensor.name.startswith("d ") for tensor in whole.tensors)
        return f"; and {WHOLE}, including the gradients of {weights} weights"


def not_tested(why: str, *, on: str = "synthetic tensors", assumptions: tuple[str, ...] = ()) -> Verification:
    """No case could be tried."""
    return Verification(False, on, (), assumptions, why)


def _out_first(name: str) -> tuple[bool, str]:
    return not name.startswith("out"), name
