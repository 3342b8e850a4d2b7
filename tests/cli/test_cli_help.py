"""Help answers at once, tells every option, and wrong words are told from right ones."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from subprocess import CompletedProcess

import pytest

from flashmore.cli.main import VERBS
from flashmore.config import CHANGEABLE
from flashmore.speedups import SWITCHES

Call = Callable[..., CompletedProcess[str]]
OPTION = re.compile(r"--[a-z][a-z0-9-]*(?:\.[a-z][a-z0-9-]*)*")
SLOW = {"torch", "matplotlib", "tensorboard", "safetensors"}


HELPS = [["--help"], ["-h"], *([verb, "--help"] for verb in VERBS)]
EACH_HELP = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from flashmore.cli.main import main

for words in json.loads(sys.argv[1]):
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main(words)
    print(json.dumps((words, code, out.getvalue(), err.getvalue(), [*sys.modules])))
"""


def test_help_answers_without_importing_torch(environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", EACH_HELP, json.dumps(HELPS)]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [words for words, *_ in answers] == HELPS
    for words, code, out, err, imported in answers:
        assert (code, err) == (0, ""), words
        assert out.startswith("usage: flashmore"), words
        assert not re.search(r"default: (None|False|)\)", out), words
        assert not SLOW & set(imported), words


def test_the_help_names_every_command(call: Call) -> None:
    done = call("--help")
    assert all(f"  {verb} " in done.stdout for verb in VERBS)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("verb", "options"),
    {
        "train": "model attention preset split max-steps batch-size learning-rate seed device dtype out json "
        "resume keep save-seconds on-save-error log-interval "
        "encoding split-seed n-layer n-head n-embd dropout attention-dropout lr-schedule "
        "warmup-steps beta1 beta2 weight-decay grad-clip threads eval-interval patience column weight",
        "generate": "count prefix temperature top-k top-p seed new-only repeats max-draws min-length "
        "max-length suffix contains pattern like max-distance avoid nearest length json",
        "pack": "out with-items",
        "runs": "json",
        "estimate": "ranks gpus tflops bandwidth-gb-s latency-us overlap fit parallel grad-accum json",
        "verify": "json",
        "look": "column weight encoding split split-seed picture json",
        "score": "file column encoding json",
        "compare": "models file column max-steps out count seed picture json",
        "demo": "out picture",
        "upgrade": "test example run gain write force even-if-slower diff seconds output-format select "
        "ignore exclude force-exclude stdin-filename",
        "rule": "all",
    }.items(),
)
def test_options_have_flat_names_that_the_help_tells(verb: str, options: str, call: Call) -> None:
    told = set(OPTION.findall(call(verb, "--help").stdout))
    assert {f"--{name}" for name in options.split()} <= told
    assert not [name for name in told if "." in name]


def test_the_help_of_an_option_has_no_line_breaks_of_the_source(process: Call) -> None:
    done = process("train", "--help", COLUMNS="300")
    assert "next to the run. Needs one process, and a file that can be read more than once." in done.stdout


def test_the_help_tells_what_may_stand_beside_resume(call: Call) -> None:
    told = set(OPTION.findall(call("train", "--resume", "runs/mlp", "--help").stdout))
    changeable = {f"--{name.replace('_', '-')}" for name in CHANGEABLE}
    negated = {"--no-activation-checkpointing", "--no-cpu-offload"}
    assert told - negated == {"--resume", "--max-steps", "--json", "--help"} | changeable


@pytest.mark.parametrize(
    ("words", "lr"),
    [("", "fitted to the data"), ("--preset makemore", "0.0005"), ("--preset=shakespeare", "0.001")],
)
def test_the_help_tells_the_defaults_that_hold(words: str, lr: str, call: Call) -> None:
    assert f"Peak learning rate. (default: {lr})" in call("train", *words.split(), "--help").stdout


def test_the_help_is_shown_with_a_preset_that_is_for_other_models(call: Call) -> None:
    done = call("train", "--preset", "names-long", "--model", "gru", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--preset" in done.stdout


def test_the_help_of_speedups_tells_which_names_it_takes(call: Call) -> None:
    help_text = " ".join(call("train", "--help").stdout.replace("│", " ").split())
    assert "Names from `flashmore speedups`, or one of `auto`, `exact`, `all` and `none`." in help_text
    listed = json.loads(call("speedups", "--json").stdout)
    assert tuple(entry["name"] for entry in listed if entry["how"].startswith("--speedups ")) == SWITCHES


def test_no_command_is_wrong_use_and_shows_the_help(call: Call) -> None:
    done = call()
    assert done.returncode == 2
    assert done.stdout.startswith("usage: flashmore")


def test_the_version_is_that_of_the_package(call: Call) -> None:
    done = call("--version")
    assert (done.returncode, done.stdout) == (0, f"flashmore {version('flashmore')}\n")


@pytest.mark.parametrize("verb", ["trian", "--model", "", "train "])
def test_an_unknown_command_is_refused_with_the_known_ones(
    verb: str, process: Call, call: Call, refusal: Callable[..., str]
) -> None:
    message = refusal((process if verb == "trian" else call)(verb), 2)
    assert f"found: '{verb}'" in message
    assert all(known in message for known in VERBS)


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]], ids=" ".join)
def test_a_reader_that_left_gets_no_traceback(words: list[str], environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "flashmore", *words]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as running:
        assert running.stdout
        running.stdout.close()
        assert running.stderr
        assert running.stderr.read() == ""
    assert running.returncode == 1
