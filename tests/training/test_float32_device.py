"""No float64 number is put on the training device: Apple's GPU, which `auto` takes, has none."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from flashmore.backends.choose import Problem, choose
from flashmore.call import CallOptions
from flashmore.cli.main import main
from flashmore.generation.options import GenerateOptions
from flashmore.generation.sample import generate, score
from flashmore.generation.text import continue_text
from flashmore.runs import Run
from float32_device import DEVICE, DeviceTensor, float32_device

SIZES = ("--n-embd", "16", "--n-layer", "1", "--n-head", "2")
SMALL = ("--max-steps", "4", "--batch-size", "8", "--eval-interval", "2")
NAMES = [a + b + c for a in "bdmnrst" for b in "aeio" for c in ("n", "ra", "la")]


@pytest.fixture(autouse=True)
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FLASHMORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 40)
    monkeypatch.chdir(tmp_path)
    with float32_device():
        yield


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda on_device: on_device.double(),
        lambda on_device: on_device.to(torch.float64),
        lambda on_device: torch.mul(on_device, torch.zeros(3, dtype=torch.float64)),
        lambda on_device: torch.zeros(3, dtype=torch.float64).to(DEVICE),
        lambda on_device: torch.zeros(3, dtype=torch.float64, device="mps"),
        lambda on_device: torch.nn.Linear(2, 2).to(DEVICE).double(),
    ],
)
def test_the_stand_in_refuses_float64(forbidden: Callable[[torch.Tensor], object]) -> None:
    on_device = torch.ones(3, device="mps")
    assert on_device.device == DEVICE
    with pytest.raises(TypeError, match="float64"):
        forbidden(on_device)
    assert isinstance(on_device + 1, DeviceTensor)
    assert on_device.cpu().double().sum().item() == 3


def trained(*words: str) -> Run:
    assert main(["train", *words, *SMALL, "--out", "run"]) == 0
    return Run.open(Path("run"))


@pytest.mark.parametrize("attention", ["auto", "manual"])
def test_a_run_on_items_trains_evaluates_resumes_and_generates(
    attention: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("names.txt", *SIZES, "--attention", attention)
    assert "; mps; run " in capsys.readouterr().err, "auto takes the device"
    assert main(["train", "--resume", "run", "--max-steps", "6"]) == 0
    result = run.read_result()
    assert result is not None
    assert result["steps"] == 6
    made = generate(run, GenerateOptions(count=5, seed=1), "mps")
    here = generate(run, GenerateOptions(count=5, seed=1), "cpu")
    assert [name.text for name in made.names] == [name.text for name in here.names]
    (scored,) = score(run, ["bara"], "mps")
    assert scored.log_prob == pytest.approx(score(run, ["bara"], "cpu")[0].log_prob, rel=1e-5)


@pytest.mark.parametrize("model", ["bigram", "mlp", "bow", "wavenet"])
def test_every_other_model_trains(model: str) -> None:
    trained("names.txt", "--model", model)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_trains(dtype: str) -> None:
    trained("names.txt", *SIZES, "--dtype", dtype)


def test_a_run_on_text_trains_evaluates_and_generates() -> None:
    run = trained("text.txt", "--mode", "text", "--block-size", "8", *SIZES)
    made = continue_text(run, GenerateOptions(prefix="to be", seed=1), 20, "mps")
    assert made == continue_text(run, GenerateOptions(prefix="to be", seed=1), 20, "cpu")


def test_attention_is_chosen_and_explained() -> None:
    choice = choose("auto", Problem(CallOptions(batch_size=2, n_head=2, length=8, head_dim=8), DEVICE))
    manual = next(one for one in choice.candidates if one.name == "manual")
    assert manual.time_ms is not None
    assert main(["explain"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ("step", "names.txt", "--variants", "manual", "sdpa", "--batch-size", "8", *SIZES),
        ("ablation", "names.txt", "--speedups", "fused-adamw", "schedule", "--batch-size", "8", *SIZES),
        ("attention", "--length", "16", "--batch-size", "1", "--n-head", "1", "--head-dim", "8"),
    ],
    ids=lambda words: words[0],
)
def test_every_bench_measures(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for bench in ("step", "ablation"):
        monkeypatch.setattr(f"flashmore.benchmark.{bench}.bench.BLOCK_SECONDS", 1e-3)
    monkeypatch.setattr("flashmore.benchmark.ablation.bench.TRIAL_BLOCKS", 2)
    few = ["--blocks", "2"] if words[0] != "attention" else []
    assert main(["bench", *words, *few, "--out", "record.json"]) == 0
    record = json.loads(Path("record.json").read_text())
    assert record["environment"]["device"] == "mps"
    measured = record["variants"] if words[0] == "ablation" else record.get("variants", record.get("rows"))
    assert any(one["ok"] for one in measured)
