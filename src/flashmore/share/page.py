"""A run as one self-contained web page, which computes the model itself.

The page carries a gzip file in base64: the length of a JSON header in 4 bytes (little-endian), the header,
and float32 numbers, first all first bytes, then all second bytes, and so on, which compresses better. The
script in `page/` reads it; its modules are joined into one, since a page opened from disk may load nothing.
"""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import PureWindowsPath
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from flashmore.data.vocabulary import EOS
from flashmore.errors import ConfigError
from flashmore.generation.load import load_model
from flashmore.generation.options import GenerateOptions
from flashmore.generation.sample import generate
from flashmore.generation.text import continue_text
from flashmore.models.registry import parameters_of
from flashmore.runs import Run
from flashmore.specs import model_spec, models
from flashmore.training.result import result_of

MOST_PARAMETERS = 10**7
"""A larger model would take minutes to open and to compute."""
MOST_RUNS = 4
MOST_POINTS = 400
"""Logged steps kept of a run, besides the evaluations."""
MODULES = (
    "random", "models", "payload", "dom", "text", "sample", "names", "next", "attention", "training", "check",
    "main",
)  # fmt: skip
"""In the order of their imports."""
_SEED, _NAMES, _CHARACTERS = 1, 20, 60
"""What is drawn for the page to check itself."""
_MOST_LOGITS = 20_000


def page(runs: Sequence[Run], *, with_data: bool = True) -> str:
    """An HTML document for one run or several side by side.

    Args:
        runs: 1 to `MOST_RUNS` runs with weights, all on items or all on long text.
        with_data: whether the page contains the items, which it needs to tell new names from known ones.

    Raises:
        ConfigError: too many runs, runs of different kinds, or a model that is too large or that the page
            does not know.
        RunError: a run without weights, or a damaged one.
    """
    is_text = _are_text(runs)
    for run in runs:
        _require_shown(run)
    payload = _Payload()
    lists: list[dict[str, list[str]]] = []
    header = {
        "models": [
            payload.model(run, lists, with_data=with_data) | {"title": title}
            for run, title in zip(runs, _titles(runs), strict=True)
        ],
        "references": [payload.reference(place, run) for place, run in enumerate(runs)],
        "lists": lists,
    }
    script, style = _script(), _read("page.css")
    environment = Environment(
        loader=PackageLoader("flashmore.share", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    first, things = runs[0], "text" if is_text else "names"
    sources = {source_of(run) for run in runs}
    source = sources.pop() if len(sources) == 1 else None
    return environment.get_template("page.html").render(
        title=f"More {things}"
        if source is None
        else f"More {things} like {'that' if is_text else 'those'} in {source}",
        summary=_summary(runs),
        things=things,
        is_text=is_text,
        labelled=bool(lists),
        attends=any(model_spec(run.model.model).attends for run in runs),
        example=_example(runs, payload.drawn),
        data_note=_data_note(lists, is_text=is_text),
        version=version("flashmore"),
        torch=first.settings.versions.get("torch", torch.__version__),
        payload=Markup(payload.packed(header)),
        script=Markup(script),
        style=Markup(style),
        script_hash=_hash(script),
        style_hash=_hash(style),
    )


def source_of(run: Run) -> str | None:
    """The name of the file that a run was trained on; None for the built-in names and stdin."""
    file = run.config.get("file")
    return None if file in (None, "-") else PureWindowsPath(file).name  # which takes both kinds of separators


def _titles(runs: Sequence[Run]) -> list[str]:
    """The models' names, with those of the runs where they are needed to tell them apart."""
    names = [_name_of(run) for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} {number} ({run.path.resolve().name})"
        for number, (name, run) in enumerate(zip(names, runs, strict=True), start=1)
    ]


class _Payload:
    """Collects the numbers of a page, and the JSON that refers to them by place and length."""

    def __init__(self) -> None:
        self.numbers: list[Tensor] = []
        self.length = 0
        self.drawn: list[str] = []
        """Names of the first run."""

    def model(self, run: Run, lists: list[dict[str, list[str]]], *, with_data: bool) -> dict[str, Any]:
        weights, result, config = run.load_weights(), result_of(run), run.model
        if config.tie_weights:
            del weights["lm_head.weight"]
        spaces = [number for number, each in enumerate(run.vocabulary.characters, 1) if each.isspace()]
        parts = {part: sorted(getattr(run.split, part)) for part in ("train", "validation", "test")}
        shown = with_data and run.text is None and any(parts.values())
        if shown and parts not in lists:
            lists.append(parts)
        lines = run.read_metrics()
        stride = max(1, -(-len(lines) // MOST_POINTS))
        return {
            "run": run.path.resolve().name,
            "attends": model_spec(config.model).attends,
            "kind": "items" if run.text is None else "text",
            "config": {name: getattr(config, name) for name in _CONFIG},
            "characters": list(run.vocabulary.characters),
            "spaces": spaces,
            "list": lists.index(parts) if shown else None,
            "layout": {name: self._kept(value) for name, value in weights.items()},
            "parameters": sum(value.numel() for value in weights.values()),
            "steps": run.load_state().step,
            "val_loss": result and result.val_loss,
            "test_loss": result and result.test_loss,
            "metrics": [
                [line["step"], line["loss"], line.get("val_loss")]
                for number, line in enumerate(lines)
                if number % stride == 0 or "val_loss" in line
            ],
            "samples": [[line["step"], line["samples"]] for line in lines if "samples" in line],
        }

    def reference(self, place: int, run: Run) -> dict[str, Any]:
        """What PyTorch draws and computes for a run, for the page to compare itself with."""
        if run.text is None:
            options = GenerateOptions(count=_NAMES, seed=_SEED, max_draws=100 * _NAMES)
            drawn = [name.text for name in generate(run, options).names]
            ids = [EOS, *run.vocabulary.encode(max(drawn, key=len, default=""))]
        else:
            options = GenerateOptions(seed=_SEED)
            drawn = list(continue_text(run, options, _CHARACTERS).texts[0])
            ids = [number - 1 for number in run.vocabulary.encode("".join(drawn))]
        if place == 0:
            self.drawn = drawn
        positions = min(len(ids), run.model.block_size, max(1, _MOST_LOGITS // run.model.vocab_size))
        with torch.inference_mode():
            logits = load_model(run, "cpu")(torch.tensor([ids[:positions]]))[0]  # (T, V)
        return {"model": place, "ids": ids, "logits": self._kept(logits), "drawn": drawn, "seed": _SEED}

    def packed(self, header: dict[str, Any]) -> str:
        """Base64 of the gzip file."""
        encoded = json.dumps(header, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        numbers = torch.cat(self.numbers).numpy().astype("<f4")
        planes = numbers.view(np.uint8).reshape(-1, 4).T.tobytes()
        data = len(encoded).to_bytes(4, "little") + encoded + planes
        return base64.b64encode(gzip.compress(data, compresslevel=9, mtime=0)).decode()

    def _kept(self, numbers: Tensor) -> tuple[int, int]:
        start, count = self.length, numbers.numel()
        self.numbers.append(numbers.detach().float().flatten().cpu())
        self.length += count
        return start, count


_CONFIG = ("model", "vocab_size", "block_size", "n_layer", "n_head", "n_embd", "activation", "reset_after")


def _are_text(runs: Sequence[Run]) -> bool:
    """Whether the runs are on long text."""
    if not 1 <= len(runs) <= MOST_RUNS:
        raise ConfigError(f"1 to {MOST_RUNS} runs on a page", str(len(runs)), "fewer runs")
    kinds = {run.text is None for run in runs}
    if len(kinds) > 1:
        raise ConfigError("runs of one kind on a page", "runs on items and on long text", "a page for each")
    return not kinds.pop()


def _require_shown(run: Run) -> None:
    if not model_spec(run.model.model).page:
        shown = ", ".join(name for name, spec in models().items() if spec.page)
        raise ConfigError("a model that a page can compute", f"{run.path}: {run.model.model}", shown)
    if run.text is not None and run.text.kind != "characters":
        found = f"{run.path}, a run on ids without their characters"
        raise ConfigError("a run with characters", found, "a run on a text file")
    if (parameters := parameters_of(run.model)) > MOST_PARAMETERS:
        wanted = f"at most {MOST_PARAMETERS:,} parameters, so that a browser opens the page in seconds"
        raise ConfigError(wanted, f"{parameters:,} in {run.path}", "a smaller --n-embd or --n-layer")


def _name_of(run: Run) -> str:
    """The model's name as its class is written, such as MLP."""
    return model_spec(run.model.model).target.rpartition(":")[2]


def _summary(runs: Sequence[Run]) -> str:
    kinds = list(dict.fromkeys(map(_name_of, runs)))
    named = kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} and {kinds[-1]}"
    items = {run.split.train for run in runs}
    count = len(runs[0].split.train)
    learned = "a text" if runs[0].text is not None else f"{count:,} name{'s' * (count != 1)}"
    if len(items) > 1 or (runs[0].text is None and not count):
        learned = "a list of names" if len(runs) == 1 else "lists of names"
    who = "A small neural network" if len(runs) == 1 else "Small neural networks"
    return f"{who} ({named}) learned from {learned}, character by character."


def _example(runs: Sequence[Run], drawn: Sequence[str]) -> str:
    """A short name that every model can read."""
    if runs[0].text is not None:
        return "".join(drawn).replace("\n", " ").strip()[:16]
    known = [set(run.vocabulary.characters) for run in runs]
    most = min(run.model.block_size for run in runs) - 1
    candidates = [
        text
        for text in (*drawn, *runs[0].split.train[:1000])
        if len(text) <= most and all(characters.issuperset(text) for characters in known)
    ]
    return min(candidates, key=lambda text: abs(len(text) - 6), default="")


def _data_note(lists: Sequence[object], *, is_text: bool) -> str:
    if is_text:
        return "The page contains the model, not the text it learned from."
    if lists:
        return "The page contains the model and the names it learned from, to tell new names from known ones."
    return "The page contains the model, not the names it learned from, so new names are not labelled."


def _script() -> str:
    """The modules as one, without their imports and exports."""
    joined = []
    for name in MODULES:
        text = re.sub(r"^import [^;]*;\n", "", _read(f"{name}.js"), flags=re.MULTILINE)
        joined.append(re.sub(r"^export ", "", text, flags=re.MULTILINE))
    return "\n" + "\n".join(joined)


def _read(name: str) -> str:
    return resources.files("flashmore.share").joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
