"""Peak memory: known allocations are seen, and nothing else is."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmore.measuring.memory import peak_bytes

CPU = torch.device("cpu")
KIB = 1024


@given(st.lists(st.integers(1, 512), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_tensors_that_stand_together_add_up(sizes: list[int]) -> None:
    found = peak_bytes(lambda: [torch.empty(size * KIB, dtype=torch.uint8) for size in sizes], CPU)
    assert found == sum(sizes) * KIB


@given(st.lists(st.integers(1, 512), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_tensors_that_stand_one_after_the_other_do_not(sizes: list[int]) -> None:
    def one_by_one() -> None:
        for size in sizes:
            torch.empty(size * KIB, dtype=torch.uint8)

    assert peak_bytes(one_by_one, CPU) == max(sizes) * KIB


def test_what_stood_before_is_not_counted() -> None:
    stands = torch.zeros(100 * KIB, dtype=torch.uint8)
    assert peak_bytes(lambda: stands.view(-1), CPU) == 0
    assert peak_bytes(lambda: stands.clone(), CPU) == 100 * KIB
    assert (peak_bytes(lambda: stands.add_(1), CPU) or 0) <= KIB


def test_temporary_results_inside_an_expression_count() -> None:
    x = torch.ones(256 * KIB)
    assert peak_bytes(lambda: ((x + 1) * 2).sum(), CPU) == pytest.approx(2 * x.nbytes, abs=KIB)


def test_an_error_in_the_work_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        peak_bytes(lambda: 1 / 0, CPU)
    assert peak_bytes(lambda: torch.empty(KIB, dtype=torch.uint8), CPU) == KIB


def test_the_profiler_says_nothing_and_stderr_works_again_after_it() -> None:
    code = (
        "import sys, torch; from flashmore.measuring.memory import peak_bytes; "
        "print('before', file=sys.stderr); peak_bytes(lambda: torch.ones(9), torch.device('cpu')); "
        "print('after', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["before", "after"]
    assert done.stdout == ""


def test_a_device_that_keeps_no_count_gives_none() -> None:
    assert peak_bytes(lambda: None, torch.device("mps")) is None


@pytest.mark.cuda
def test_cuda_counts_what_the_work_took_at_most() -> None:
    cuda = torch.device("cuda")
    stands = torch.empty(100 * KIB, dtype=torch.uint8, device=cuda)
    found = peak_bytes(lambda: torch.empty(512 * KIB, dtype=torch.uint8, device=cuda), cuda)
    assert found == 512 * KIB
    assert stands.nbytes == 100 * KIB
