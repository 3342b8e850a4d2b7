"""Export of a run to the formats of other libraries, each checked by loading it back with that library.

Shape letters: B batch, T positions, V vocabulary.
"""

import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flashmore.data.vocabulary import EOS
from flashmore.errors import ConfigError, FlashmoreError, RunError
from flashmore.files import disk_errors
from flashmore.generation.cache import decoder_for
from flashmore.generation.draw import draw, random_numbers
from flashmore.generation.load import load_model, untrained
from flashmore.generation.options import GenerateOptions
from flashmore.models.registry import count_parameters
from flashmore.runs import Run
from flashmore.share import gguf_file, hugging_face, onnx_graph
from flashmore.specs import model_spec

Logits = Callable[[Tensor], Tensor]
"""From ids (B, T) int64 to logits (B, T, V) float32."""

CHECK = "check.json"
NAMES = 200
TOLERANCE = 1e-5
"""Largest difference of logits, relative to the largest logit if that is above 1."""
_MOST_WORK = 10**12
"""Parameters times the squared context up to which every length is checked, in about a minute."""


@dataclass(frozen=True)
class Exported:
    """What was exported, and how far the other library's results are from PyTorch's."""

    format: str
    files: tuple[str, ...]
    checked_with: str
    """The library that loaded the export, and its version."""
    sequences: int
    """Sequences compared: names drawn from the model, and some of every other length."""
    largest_difference: float
    """Largest absolute difference between their logits and ours."""
    greedy_identical: bool
    """Whether the most likely names, one for each first character, are the same."""


@dataclass(frozen=True)
class Format:
    """One format: `write` fills a folder, `load` reads it back."""

    packages: tuple[str, ...]
    """What it needs; the last one loads it."""
    refuses: Callable[[Run], str | None]
    """Why the format cannot hold a run's model; None if it can."""
    write: Callable[[Run, nn.Module, Path], None]
    load: Callable[[Run, Path], AbstractContextManager[Logits]]


def export(run: Run, to: str, out: Path) -> Exported:
    """Export the best weights of a run into a new folder, and check the result.

    Args:
        run: a run with weights.
        to: one of `FORMATS`.
        out: a new or empty folder.

    Raises:
        ConfigError: an unknown format, a model that it cannot hold, a missing package, or an occupied folder.
        RunError: a run without weights, or a damaged one.
        FlashmoreError: the other library computes something else; nothing is written then.
    """
    if to not in FORMATS:
        raise ConfigError("a format for --to", f"'{to}'", ", ".join(FORMATS))
    form = FORMATS[to]
    checker = form.packages[-1]
    if (reason := form.refuses(run)) is not None:
        able = ", ".join(name for name, other in FORMATS.items() if other.refuses(run) is None)
        raise ConfigError(f"a run that --to {to} can hold", f"{run.path}: {reason}", f"--to {able}")
    if missing := [name for name in form.packages if importlib.util.find_spec(name) is None]:
        found = f"no {', '.join(missing)}"
        raise ConfigError(f"the packages for --to {to}", found, f"pip install 'flashmore[{to}]'")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("a new or empty folder for --out", f"{out} exists", "another --out")
    out = out.resolve()
    model = load_model(run, "cpu")
    with disk_errors(f"to export to {out}", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        with disk_errors(f"to export to {out}", out), _quiet():
            form.write(run, model, folder)
            files = tuple(sorted(path.name for path in folder.iterdir()))
            made = Exported(to, files, f"{checker} {version(checker)}", 0, 0.0, greedy_identical=True)
            with form.load(run, folder) as theirs:
                made = _checked(run, model, theirs, made)
            (folder / CHECK).write_text(json.dumps(asdict(made), indent=2) + "\n", encoding="utf-8")
            folder.chmod(0o755)
            if out.exists():
                out.rmdir()
            folder.rename(out)
    except FlashmoreError:
        raise
    except Exception as error:
        found = str(error).strip().partition("\n")[0] or type(error).__name__
        valid = f"another --to, or another version of {checker}"
        raise FlashmoreError(f"{checker} to write and load {run.path}", found, valid) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return made


@torch.inference_mode()
def _checked(run: Run, model: nn.Module, theirs: Logits, made: Exported) -> Exported:
    """Compare the logits of names and of every length, and greedy names."""
    largest, count = 1.0, 0
    differences = []
    for ids in sequences(run, model):
        expected, found = model(ids), theirs(ids)  # (B, T, V)
        largest = max(largest, float(expected.abs().max()))
        differences.append((found - expected).abs().max())
        count += len(ids)
    difference = float(torch.stack(differences).max())  # NaN if any is
    starts = [[EOS]] if run.text is None else []
    starts += [
        [*start, number] for start in (starts or [[]]) for number in range(len(starts), run.model.vocab_size)
    ]
    starts = [start for start in starts if len(start) < run.model.block_size][:NAMES]
    same = all(_greedy(model, start, run) == _greedy(theirs, start, run) for start in starts)
    if not (difference <= TOLERANCE * largest and same):
        told = f"logits that differ by {difference:.1e}, and {'the same' if same else 'other'} greedy names"
        valid = "another --to; and please report this, with the run's config.json"
        raise FlashmoreError(f"the logits of {run.path} from {made.checked_with}", told, valid)
    return replace(made, sequences=count, largest_difference=difference, greedy_identical=same)


def sequences(run: Run, model: nn.Module) -> Iterator[Tensor]:
    """Ids (B, T) to compare: names drawn from the model, and random ids of every length."""
    context, size = run.model.block_size, run.model.vocab_size
    work = count_parameters(model) * context**2
    lengths = list(range(1, context + 1)) if work <= _MOST_WORK else []
    while not lengths or lengths[-1] != context:
        lengths.append(min(2 ** len(lengths), context))
    by_length: dict[int, list[list[int]]] = {length: [] for length in lengths}
    if run.text is None:
        drawn = draw(decoder_for(model), (), NAMES, context, GenerateOptions(), random_numbers(0))
        for row in drawn.ids.tolist():
            ids = [EOS, *row][:context]
            by_length[min((length for length in lengths if length >= len(ids)), default=context)].append(ids)
    source = torch.Generator().manual_seed(0)
    for length, rows in by_length.items():
        padded = [[*row, *[EOS] * (length - len(row))] for row in rows]
        random = torch.randint(size, (2, length), generator=source)
        yield torch.cat((torch.tensor(padded, dtype=torch.int64).view(-1, length), random))


def _greedy(logits: Logits, start: Sequence[int], run: Run) -> list[int]:
    ids = list(start)
    most = run.model.block_size if run.text is None else min(run.model.block_size, len(ids) + 20)
    while len(ids) < most and (len(ids) == 1 or ids[-1] != EOS or run.text is not None):
        ids.append(int(logits(torch.tensor([ids]))[0, -1].argmax()))
    return ids


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of exporters about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _write_safetensors(run: Run, model: nn.Module, folder: Path) -> None:
    weights = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = {"model": asdict(run.model), "characters": run.vocabulary.characters}
    (folder / "config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _load_safetensors(run: Run, folder: Path) -> AbstractContextManager[Logits]:
    model = untrained(run)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return nullcontext(model.eval())


def _refuses_export(run: Run) -> str | None:
    if model_spec(run.model.model).recurrent_kernel:
        return f"torch.export cannot express the recurrent kernel of {run.model.model} for any length"
    return None


def _write_pt2(run: Run, model: nn.Module, folder: Path) -> None:
    ids, sizes = onnx_graph.example(run)
    program = torch.export.export(model, (ids,), dynamic_shapes=(sizes,), strict=False)
    torch.export.save(program, folder / "model.pt2")


_FRESH = """
import json, sys, torch
model = torch.export.load(sys.argv[1]).module()
assert "flashmore" not in sys.modules
with torch.inference_mode():
    for line in sys.stdin:
        print(json.dumps(model(torch.tensor(json.loads(line))).tolist()), flush=True)
"""


@contextmanager
def _load_pt2(run: Run, folder: Path) -> Iterator[Logits]:
    """The program as a fresh process computes it, without flashmore."""
    del run
    command = [sys.executable, "-I", "-W", "ignore", "-c", _FRESH, str(folder / "model.pt2")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as child:
        asked, answered = child.stdin, child.stdout
        assert asked is not None
        assert answered is not None

        def logits(ids: Tensor) -> Tensor:
            asked.write(f"{json.dumps(ids.tolist())}\n")
            asked.flush()
            if not (line := answered.readline()):
                raise RunError("a fresh process to compute model.pt2", "its error is above", "another --to")
            return torch.tensor(json.loads(line))

        yield logits


FORMATS: dict[str, Format] = {
    "safetensors": Format(("safetensors",), lambda _: None, _write_safetensors, _load_safetensors),
    "hf": Format(("transformers",), hugging_face.refuses, hugging_face.write, hugging_face.load),
    "onnx": Format(("onnx", "onnxscript", "onnxruntime"), lambda _: None, onnx_graph.write, onnx_graph.load),
    "pt2": Format(("torch",), _refuses_export, _write_pt2, _load_pt2),
    "gguf": Format(("gguf",), gguf_file.refuses, gguf_file.write, gguf_file.load),
}
