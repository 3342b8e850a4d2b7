"""What lines do in their process stays there: all that comes out of it is tensors, which are checked."""

import json
import os
import pickle
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flashmore.upgrade.site import Fragment, Input, Site
from flashmore.upgrade.verify import case
from flashmore.upgrade.verify.case import LinesRaised, Setting
from flashmore.upgrade.verify.functions import functions_of
from flashmore.upgrade.verify.lines import Limits
from flashmore.upgrade.verify.runner import Runner, RunnerEnded, runners
from flashmore.upgrade.verify.tensors import Argument
from flashmore.upgrade.verify.verifier import Verifier

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the lines run in forks on Linux alone")

FRAGMENT = Fragment(
    (Input("x", "x", "tensor", ("B", "D")),),
    "def old(x):\n    return x.max() * x\n",
    "def new(x):\n    return x * x.max()\n",
)


def limits(seconds: float = 300, processor_seconds: float = 60, message_bytes: int = 2**24) -> Limits:
    return Limits(time.monotonic() + seconds, seconds, processor_seconds, message_bytes)


def arguments() -> list[Argument]:
    leaf = torch.arange(6.0).view(2, 3).requires_grad_()
    return [Argument("x", leaf, leaf.clone())]


def run(runner: Runner) -> dict[str, Tensor]:
    return runner.run(arguments(), Setting())


def replace_lines(monkeypatch: pytest.MonkeyPatch, old: Callable[..., Any]) -> None:
    """The old lines are anything, as if the allow-list had let them through."""
    new = functions_of(FRAGMENT)[1]
    monkeypatch.setattr("flashmore.upgrade.verify.lines.functions_of", lambda _: (old, new))


def test_outputs_and_gradients_come_back() -> None:
    expected = case.run(lambda x: x.max() * x, arguments(), Setting())
    assert expected.keys() == {"out", "d x"}
    with runners(FRAGMENT, limits()) as (old, new):
        for found in (run(old), run(new)):
            assert found.keys() == expected.keys()
            assert all(torch.allclose(found[name], expected[name]) for name in expected)


def test_what_the_old_lines_change_in_torch_changes_neither_the_new_ones_nor_the_judge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def poison(x: Tensor) -> Tensor:
        torch.Tensor.max = lambda *_: torch.zeros(())  # type: ignore[assignment, method-assign]
        torch.set_default_dtype(torch.float64)
        return x.max() * x

    replace_lines(monkeypatch, poison)
    with runners(FRAGMENT, limits()) as (old, new):
        assert not run(old)["out"].any()
        assert run(new)["out"].any()
    assert torch.ones(1).max() == 1
    assert torch.get_default_dtype() == torch.float32
    monkeypatch.undo()
    with runners(FRAGMENT, limits()) as (old, _):
        assert run(old)["out"].any()


def test_lines_have_no_files_no_input_and_no_memory_without_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written = tmp_path / "written"
    kept = os.open(tmp_path, os.O_RDONLY)

    def tried(x: Tensor) -> Tensor:
        open_files = list(Path("/proc/self/fd").iterdir())
        failed = 0.0
        try:
            written.write_text("something")
        except OSError:
            failed = 1.0
        small = resource.getrlimit(resource.RLIMIT_CPU)[0] <= 62
        return torch.tensor([float(len(open_files)), failed, float(os.read(0, 1) == b""), float(small)])

    replace_lines(monkeypatch, tried)
    with runners(FRAGMENT, limits()) as (old, _):
        found = old.run(arguments(), Setting(backward=False))["out"].tolist()
    os.close(kept)
    # stdin, stdout, stderr, the connection, and the folder that is listed
    assert found == [5, 1, 1, 1]
    assert not written.exists() or not written.read_bytes()


@pytest.mark.parametrize("chatter", [b"", b"x" * 2**22 + b"\n"])
def test_the_last_words_of_a_crash_are_told(chatter: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_: Tensor) -> None:
        os.write(2, chatter)
        os.write(2, b"first\nthe last words\n\n")
        os.abort()

    replace_lines(monkeypatch, crash)
    expected = r"ended \(signal 6\): the last words"
    with runners(FRAGMENT, limits()) as (old, _), pytest.raises(RunnerEnded, match=expected):
        run(old)


def test_the_last_words_of_the_judge_are_told() -> None:
    with Verifier() as verifier:
        assert verifier.verify(Site("m.py", 1, 1, "f", "rewritten", "", fragment=FRAGMENT)) is not None
        with pytest.raises(Exception, match=r"ended \(exit 1\): .*JSONDecodeError"):
            verifier._ask("no JSON")


def test_the_processor_time_of_all_runs_of_the_lines_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(x: Tensor) -> Tensor:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
        return x

    replace_lines(monkeypatch, busy)
    with runners(FRAGMENT, limits(processor_seconds=1)) as (old, _):
        run(old)
        with pytest.raises(RunnerEnded, match="the lines took longer than 1 s of processor time"):  # noqa: PT012
            for _ in range(10):
                run(old)


def test_a_reference_is_computed_once_for_the_same_inputs() -> None:
    with runners(FRAGMENT, limits()) as (old, _):
        first = old.run(arguments(), Setting(), double=True)
        assert old.run(arguments(), Setting(), double=True) is first
        assert old.run(arguments(), Setting(backward=False), double=True).keys() == {"out"}
        other = [Argument("x", None, torch.ones(2, 3))]
        assert old.run(other, Setting(), double=True)["out"].equal(torch.ones(2, 3).double())


def test_lines_that_hang_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_lines(monkeypatch, lambda _: time.sleep(600))
    with (
        runners(FRAGMENT, limits(seconds=2)) as (old, _),
        pytest.raises(RunnerEnded, match="longer than 2 s"),
    ):
        run(old)


def test_what_the_lines_raise_has_a_name() -> None:
    fragment = Fragment(FRAGMENT.inputs, FRAGMENT.old.replace("x.max()", "x.view(5)"), FRAGMENT.new)
    with runners(fragment, limits()) as (old, _), pytest.raises(LinesRaised, match=r"shape '.5.'") as raised:
        run(old)
    assert raised.value.kind == "RuntimeError"


def answer(text: object, data: bytes = b"", **tensors: object) -> bytes:
    head = json.dumps({"text": text, "tensors": tensors}).encode()
    return len(head).to_bytes(4) + head + data


def number(**tensors: object) -> bytes:
    return answer({}, b"\0" * 4, **tensors)


ONE = ["torch.float32", [1]]
X = ["torch.float32", [2, 3]]
ANSWERS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"\0\0\0\2no",
    "JSON that is too deep": (2**19).to_bytes(4) + b"[" * 2**19,
    "JSON that is no object": b"\0\0\0\2[]",
    "a text that is none": answer([], b"\0" * 4, out=ONE),
    "a pickle": pickle.dumps({"out": torch.ones(1)}),
    "a pickle of tensors": answer({}, pickle.dumps(torch.ones(1)), out=ONE),
    "no outputs": answer({}),
    "other outputs": number(other=ONE),
    "too many outputs": answer({}, b"\0" * 260, **{f"out {n}": ONE for n in range(65)}),
    "a text without end": answer(" " * 2**21),
    "a text that is shorter than it says": b"\xff\xff\xff\xff{}",
    "a message without end": answer({}, b" " * 2**25),
    "fewer bytes than numbers": number(out=["torch.float32", [2]]),
    "more bytes than numbers": number(out=["torch.float16", [1]]),
    "a size below zero": number(out=["torch.float32", [-1, -1]]),
    "a size that is no number": number(out=["torch.float32", [True]]),
    "a shape that is none": number(out=["torch.float32", 1]),
    "a shape of huge numbers": number(out=["torch.float32", [2**70]]),
    "many dimensions": number(out=["torch.float32", [1] * 70]),
    "a dtype that no test has": answer({}, b"\0" * 8, out=["torch.complex64", [1]]),
    "a dtype that is none": number(out=["os.system", [1]]),
    "a gradient of another shape": answer({}, b"\0" * 8, **{"out": ONE, "d 0": ONE}),
    "a gradient of another dtype": answer({}, b"\0" * 52, **{"out": ONE, "d 0": ["torch.float64", [2, 3]]}),
    "a gradient of something else": answer({}, b"\0" * 28, **{"out": ONE, "d 1": X}),
    "more gradients": answer({}, b"\0" * 32, **{"out": ONE, "d 0": X, "d 1": ONE}),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_none_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ANSWERS[name]

    with monkeypatch.context() as patched:
        patched.setattr("flashmore.upgrade.verify.lines.encoded", lambda *_: data)
        runner = Runner(FRAGMENT, "old", limits())
    with runner, pytest.raises(RunnerEnded, match="gave an unexpected answer"):
        run(runner)


def test_outputs_of_another_shape_get_gradients_of_their_own() -> None:
    with runners(FRAGMENT, limits()) as (old, _):
        for rows in (2, 2, 3, 1):
            leaf = torch.arange(3.0 * rows).view(rows, 3).requires_grad_()
            given = [Argument("x", leaf, leaf.clone())]
            expected = case.run(lambda x: x.max() * x, given, Setting())
            found = old.run([Argument("x", leaf, leaf.clone())], Setting())
            assert found.keys() == expected.keys()
            assert all(torch.allclose(found[name], expected[name]) for name in expected)
