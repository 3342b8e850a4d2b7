"""What a report chooses to write and says: tests that contradict each other, rewrites that are slower."""

import json
from dataclasses import asdict, replace

import pytest
from msgspec import convert

from flashmore.benchmark.gain.measure import BeforeAfter, SiteGain
from flashmore.measuring.statistics import Ratio, Spread
from flashmore.upgrade.report import FileReport, Report, SiteReport
from flashmore.upgrade.site import Searched, Site
from flashmore.upgrade.verify.result import CaseResult, Kernels, Mode, TensorVerdict, Verification, not_tested

SITE = Site("model.py", 3, 5, "f", "rewritten", "softmax", guard="not weights", assumptions=("it rains",))
EQUAL = CaseResult("square", "equal", "", (TensorVerdict("out", "equal", 1e-7, 1e-5),))
DIFFERS = CaseResult("L < S", "differs", "out differs")
PASSED = Verification(True, "synthetic tensors", (EQUAL,), ("keys are numbers",))
REFUTED = Verification(False, "the inputs from --example a:b", (EQUAL, DIFFERS), (), "L < S: out differs")
UNKNOWN = not_tested("the shape of q is not known from the source")
MODES: tuple[Mode, ...] = ("training", "evaluation")
SPREAD = Spread(1.0, 1.0, 1.0)
SLOWER = SiteGain(BeforeAfter(SPREAD, SPREAD, Ratio(0.5, 0.4, 0.6, 20)))


def file_of(*reports: SiteReport) -> FileReport:
    return FileReport(Searched("model.py", "", b"", "utf-8", ()), list(reports))


@pytest.mark.parametrize(
    ("verifications", "passed"),
    [
        ([], None),
        ([PASSED], True),
        ([UNKNOWN], False),
        ([UNKNOWN, PASSED], True),
        ([PASSED, UNKNOWN], True),
        ([PASSED, REFUTED], False),
        ([REFUTED, PASSED], False),
    ],
)
def test_one_case_that_differs_outweighs_every_other_test(
    verifications: list[Verification], passed: bool | None
) -> None:
    assert SiteReport(SITE, verifications=verifications).passed is passed


def test_a_rewrite_that_is_slower_is_written_only_if_asked() -> None:
    slow, good = (
        SiteReport(SITE, verifications=[PASSED], gain=SLOWER),
        SiteReport(SITE, verifications=[PASSED]),
    )
    both = file_of(slow, good)
    assert both.choose(even_if_slower=False) == [good]
    assert both.why_not_written is None
    assert both.choose(even_if_slower=True) == [slow, good]
    alone = file_of(slow)
    assert alone.choose(even_if_slower=False) == []
    assert "slower" in str(alone.why_not_written)
    assert "slower" in "\n".join(SLOWER.lines())


def test_a_rewrite_without_a_fused_kernel_is_written_only_if_asked() -> None:
    kernels = tuple(Kernels(mode, "float32", "math", "math") for mode in MODES)
    unfused = SiteReport(SITE, verifications=[replace(PASSED, kernels=kernels)])
    alone = file_of(unfused)
    assert alone.choose(even_if_slower=False) == []
    assert "no gain" in str(alone.why_not_written)
    assert alone.choose(even_if_slower=True) == [unfused]
    text = "\n".join(Report(files=[alone]).lines())
    assert "kernels: math on the CPU, math on CUDA\n" in text
    assert "no gain: PyTorch has no fused kernel for this call" in text
    fused = replace(PASSED, kernels=(*kernels, Kernels("evaluation", "bfloat16", "flash", "flash")))
    assert file_of(SiteReport(SITE, verifications=[fused])).choose(even_if_slower=False)


def test_what_is_not_tested_is_never_written() -> None:
    file = file_of(SiteReport(SITE, verifications=[PASSED, REFUTED]), SiteReport(SITE))
    assert file.choose(even_if_slower=True) == []
    assert file.why_not_written == "no rewrite passed its test"


def test_the_text_says_what_was_tested_on_what_and_what_is_assumed() -> None:
    report = Report(searched=2, files=[file_of(SiteReport(SITE, verifications=[UNKNOWN, PASSED]))])
    text = "\n".join(report.lines())
    assert "3-5 f: FM001 rewritten: softmax" in text
    assert "fused only if not weights; otherwise the old lines run" in text
    assert "not tested: the shape of q is not known" in text
    assert "tested on synthetic tensors: 1 case equal; compared out" in text
    assert "assumes that it rains" in text
    assert "assumes that keys are numbers" in text
    assert text.endswith("2 files searched: 1 can be rewritten (1 tested), 0 refused, 0 already fused")


def test_a_test_survives_the_way_through_json() -> None:
    for verification in (
        REFUTED,
        replace(PASSED, kernels=(Kernels("training", "float32", "flash", "efficient"),)),
    ):
        assert convert(json.loads(json.dumps(asdict(verification))), Verification) == verification
