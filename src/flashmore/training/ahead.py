"""Training steps compiled ahead of time, and kept in the user's cache, where later runs find them.

https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html

`torch.compile` takes 20 s or more before the first step, and several seconds even if its own caches have
everything, because it traces the step again. AOTInductor makes a library of the step, which loads in
milliseconds, without a compiler. A library depends on sizes and constants alone, never on data, so runs on
other lists share it: vocabulary and context are padded to multiples, for which the added parameters are zero
and stay so.

The cache has native code that is executed, so it lies in the user's own folder, and no run has a copy.
"""

import hashlib
import json
import os
import stat
import tempfile
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashmore.backends.packed import Segments
from flashmore.config import TrainConfig
from flashmore.data.batches import IGNORE
from flashmore.errors import FlashmoreError, StorageError
from flashmore.files import cache_folder, disk_errors, is_temporary, read_regular, replace_file
from flashmore.measuring.environment import cpu_name
from flashmore.models.config import ModelConfig
from flashmore.models.registry import without_values
from flashmore.ranks import world_size
from flashmore.specs import backends, model_spec
from flashmore.terminal import say
from flashmore.training.dataset import Batch, shaped
from flashmore.training.products import use_onednn
from flashmore.training.update import Buffers, Update

CACHE_VERSION = 1
VOCABULARY_MULTIPLE = 32
CONTEXT_MULTIPLE = 8
"""To these multiples vocabulary and context are padded, where the model's parameters allow it."""
TOKENS_MULTIPLE = 16
"""To this multiple the packed tokens of a batch are padded, because oneDNN generates code for each number."""
UNUSED = -1e9
"""Added to the logits of ids that the vocabulary does not have: their probability is exactly 0."""
LARGEST_LIBRARY, LARGEST_NOTE = 2**30, 2**20
"""Most bytes of the files of a step; ours have about 3 million and 200."""
UNFINISHED_SECONDS = 3600.0
"""Temporary files older than this are of processes that were killed."""
MOST_LIBRARIES = 100
"""Libraries kept in the cache, of which the longest unused are removed."""
_CONSTANTS = ("optimizer", "beta1", "beta2", "grad_clip", "ngram_smoothing", "dtype")
"""The options that are constants of a library. Learning rates and weight decay are inputs."""
TOKEN_INPUTS = (7, 8, 9, 10, 13)
"""Inputs of a packed step with a row for each token: ids, targets, positions, places and soft targets."""
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Program:
    """Everything that a compiled step depends on, but for the machine, torch and the code."""

    model: ModelConfig
    """The model with padded sizes."""
    constants: dict[str, Any]
    """The values of the options that are constants of the step."""
    rows: int
    """B, items or windows of a batch."""
    packed: bool
    """Whether items are concatenated without padding; else rows are as long as the context."""
    mode: str
    """torch.compile's mode."""
    threads: int
    parameters: str
    """The dtype of the parameters."""

    @property
    def digest(self) -> str:
        """A name for it on this machine, with this torch and this code."""
        key = {
            "version": CACHE_VERSION,
            "program": asdict(self),
            "torch": [torch.__version__, torch.version.git_version],
            "cpu": [cpu_name(), torch.backends.cpu.get_cpu_capability()],
            "code": _code_digest(),
            "options": sorted(_compiler_options()),
        }
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def pads(self) -> bool:
        """Whether vocabulary and context are padded."""
        return pads(self.model)

    def structure(self) -> nn.Module:
        """The model in training mode, without values."""
        return without_values(self.model).train()

    def config(self) -> TrainConfig:
        """A config with these constants."""
        return TrainConfig(model=self.model.model, weight_decay=0.0, **self.constants)


def program_of(
    config: TrainConfig, model_config: ModelConfig, device: torch.device, speedups: Collection[str]
) -> Program | None:
    """The program of a run's compiled step; None if `torch.compile` compiles it.

    That is so on a GPU, where Triton compiles its kernels, where the gradient is summed over slices or
    processes between the two halves of a step, and for models of other packages, whose code may change.
    """
    if device.type != "cpu" or config.slices or config.grad_accum > 1 or world_size() > 1:
        return None
    if not model_spec(model_config.model).target.startswith("flashmore."):
        return None
    sizes = replace(model_config, init="torch")  # how weights start is no part of a step
    if pads(sizes):
        vocab_size = _multiple(sizes.vocab_size, VOCABULARY_MULTIPLE)
        sizes = replace(sizes, vocab_size=vocab_size, block_size=padded_context(sizes.block_size))
    constants = {name: getattr(config, name) for name in _CONSTANTS}
    packed, dtype = "pack" in speedups, str(torch.get_default_dtype())
    return Program(
        sizes, constants, config.batch_size, packed, mode_of(speedups), torch.get_num_threads(), dtype
    )


def mode_of(speedups: Collection[str]) -> str:
    """The mode of torch.compile for these speed-ups."""
    return "max-autotune-no-cudagraphs" if "max-autotune" in speedups else "default"


def pads(model_config: ModelConfig) -> bool:
    """Whether a model may have rows in its tables that no id and no position uses."""
    return model_spec(model_config.model).packed and model_config.padding_multiple == 1


def padded_context(block_size: int) -> int:
    """The context for which a step is compiled."""
    return _multiple(block_size, CONTEXT_MULTIPLE)


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of


def _compiler_options() -> Iterator[tuple[str, str]]:
    """The variables that set options of PyTorch's compiler."""
    for name, value in os.environ.items():
        if name.startswith("TORCHINDUCTOR_") and name != "TORCHINDUCTOR_CACHE_DIR":
            yield name, value


@cache
def _code_digest() -> str:
    """A digest of the code of which steps consist: after a change they must be compiled again."""
    package = Path(__file__).parents[1]
    files = [*(package / "models").glob("*.py"), *(package / "backends").glob("*.py")]
    names = ("ahead.py", "dataset.py", "optimizers.py", "products.py", "step.py", "update.py")
    files += [Path(__file__).with_name(name) for name in names]
    texts = (f"{path.name}\0{path.read_text(encoding='utf-8')}\0" for path in sorted(files))
    return hashlib.sha256("".join(texts).encode()).hexdigest()


class Compiled:
    """A compiled step, from the cache or else compiled at the first call.

    Args:
        program: the step.
        vocab_size: the number of ids that the data has.
        automatic: whether the attention backend was measured to be the fastest.
    """

    def __init__(self, program: Program, vocab_size: int, *, automatic: bool) -> None:
        self.program = program
        self._automatic = automatic
        self._library: Any = None
        unused = torch.arange(program.model.vocab_size, device="cpu") >= vocab_size  # (V,)
        self._unused = unused.to(torch.get_default_dtype()) * UNUSED

    def __call__(self, buffers: Buffers, batch: Batch, rates: Tensor) -> Tensor:
        """Update the buffers by one batch, in place.

        Args:
            buffers: on the CPU, with the padded sizes.
            batch: with the rows of the program.
            rates: learning rates of AdamW and Muon, (2,).

        Returns:
            The loss before the update, a scalar.
        """
        if self._library is None:
            self._library = _load(self.program, automatic=self._automatic)
        inputs = _inputs(self.program, batch)
        (loss,) = self._library.run([*buffers.tensors(), self._unused, rates, *inputs])
        assert isinstance(loss, Tensor)
        return loss


def _inputs(program: Program, batch: Batch) -> tuple[Tensor, ...]:
    """The tensors of a batch in the order in which a library takes them, with the padded sizes."""
    V, T = program.model.vocab_size, program.model.block_size
    segments, more = batch.segments, T - batch.fixed_sizes[1]
    ids, targets, smooth = batch.ids, batch.targets, batch.smooth
    extra: tuple[Tensor, ...] = ()
    assert batch.fixed_sizes[0] == program.rows
    if segments is None:
        ids, targets = F.pad(ids, (0, more)), F.pad(targets, (0, more), value=IGNORE)  # (B, T)
        smooth = None if smooth is None else F.pad(smooth, (0, 0, 0, more))
    else:
        rows = (x.view(program.rows, -1) for x in (segments.tokens, segments.real))
        tokens, real = (F.pad(x, (0, more)).flatten() for x in rows)
        places = segments.places + segments.places // segments.longest * more
        N = len(ids)
        added = min(_multiple(N, TOKENS_MULTIPLE), len(real)) - N
        if added:
            # Additional tokens read from a place that is padding, which gives them no gradient.
            places = F.pad(places, (0, added), value=int(real.byte().argmin()))
            ids, positions = (F.pad(x, (0, added)) for x in (ids, segments.positions))
            targets = F.pad(targets, (0, added), value=IGNORE)
            smooth = None if smooth is None else F.pad(smooth, (0, 0, 0, added))
        else:
            positions = segments.positions
        extra = (positions, places, tokens, real)
    if smooth is not None:
        extra = (*extra, F.pad(smooth, (0, V - smooth.size(-1))))
    return ids, targets, *extra


# The cache.


@dataclass(frozen=True)
class _Note:
    """The file beside a library."""

    sha256: str
    """Of the library: what is damaged must not be executed."""
    automatic: bool
    """Whether its attention backend was measured to be the fastest."""


def cached_attention(
    config: TrainConfig, model_config: ModelConfig, device: torch.device, speedups: Collection[str]
) -> str | None:
    """The attention backend of a run's compiled step; None if the step is not in the cache.

    Unless the config names it, the backend was the fastest when the step was compiled. A model without
    attention has that of its config.
    """
    measured = model_spec(model_config.model).attends and config.attention == "auto"
    named = model_config.attention if config.attention == "auto" else config.attention
    for name in backends() if measured else (named,):
        program = program_of(config, replace(model_config, attention=name), device, speedups)
        if program is not None and find(program, automatic=measured) is not None:
            return name
    return None


def find(program: Program, *, automatic: bool = False) -> Path | None:
    """The library in the cache; None if there is none, or one that is damaged or that others can change.

    Args:
        program: the step.
        automatic: find only one whose attention backend was measured to be the fastest.
    """
    cache = cache_folder()
    if cache is None:
        return None
    path = cache / "compiled" / f"{program.digest}.pt2"
    try:
        if any(_is_foreign(name) for name in (cache, path.parent, path, path.with_suffix(".json"))):
            return None
        note = msgspec.json.decode(read_regular(path.with_suffix(".json"), LARGEST_NOTE), type=_Note)
        library = read_regular(path, LARGEST_LIBRARY)
    except (OSError, FlashmoreError, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    fits = hashlib.sha256(library).hexdigest() == note.sha256 and (note.automatic or not automatic)
    return path if fits else None


def _is_foreign(path: Path) -> bool:
    """Whether other users own or can change a file, whose code must then not be executed."""
    status = path.lstat()
    return os.name == "posix" and (status.st_uid != os.getuid() or bool(status.st_mode & _WRITABLE_BY_OTHERS))


def compile_for_later(program: Program, *, automatic: bool) -> None:
    """Compile a step and put it into the cache.

    Args:
        program: the step.
        automatic: whether its attention backend was measured to be the fastest.

    Raises:
        StorageError: the cache cannot be written, or there is no folder for it.
        Exception: PyTorch's compiler failed; see `flashmore.errors.is_of_the_compiler`.
    """
    with tempfile.TemporaryDirectory(prefix="flashmore-") as scratch:
        _keep(program, _build(program, Path(scratch)), automatic=automatic)


def _load(program: Program, *, automatic: bool) -> Any:
    path = find(program)
    if path is not None:
        with suppress(OSError):
            os.utime(path)  # the longest unused is removed first
        with suppress(StorageError):  # a system whose C library is older, for example; it is compiled again
            return _library(path)
    with tempfile.TemporaryDirectory(prefix="flashmore-") as scratch:
        path = _build(program, Path(scratch))
        try:
            _keep(program, path, automatic=automatic)
        except StorageError as error:
            say(f"the compiled step is not kept for later runs: {error.found}")
        return _library(path)  # it is unpacked to a folder of its own


def _library(path: Path) -> Any:
    """Load a library, which PyTorch unpacks to a temporary folder.

    Raises:
        StorageError: that folder is full, or nothing can be executed from it.
    """
    try:
        # torch._inductor.aoti_load_package does the same, after importing the compiler, which takes a second.
        return torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    except RuntimeError as error:
        valid = "a folder in $TMPDIR with free space and without noexec, or --speedups without compile"
        found = str(error).partition("\n")[0]
        raise StorageError("to load the compiled training step", found, valid) from error


def _keep(program: Program, library: Path, *, automatic: bool) -> None:
    cache = cache_folder()
    if cache is None:
        raise StorageError("a cache folder", "no home folder", "a folder in $FLASHMORE_CACHE")
    path = cache / "compiled" / f"{program.digest}.pt2"
    data = library.read_bytes()
    note = _Note(hashlib.sha256(data).hexdigest(), automatic)
    with disk_errors(f"to write {path}", path):
        cache.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if _is_foreign(cache) or _is_foreign(path.parent):
            found = f"{path.parent}, which others own or can change"
            raise StorageError("a cache folder of your own", found, "another folder in $FLASHMORE_CACHE")
        for name, content in ((path, data), (path.with_suffix(".json"), msgspec.json.encode(note))):
            replace_file(name, content)
            name.chmod(0o600)
        _remove_unused(path.parent)


def _remove_unused(folder: Path) -> None:
    libraries = sorted(folder.glob("*.pt2"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in libraries[MOST_LIBRARIES:]:
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
    for path in folder.iterdir():
        old = is_temporary(path.name) and time.time() - path.stat().st_mtime > UNFINISHED_SECONDS
        if old:  # of a process that was killed
            path.unlink(missing_ok=True)


# Compiling.


def _build(program: Program, folder: Path) -> Path:
    """Compile a step to a file in a folder, with as many threads as this process uses.

    Raises:
        Exception: PyTorch's compiler failed; see `flashmore.errors.is_of_the_compiler`.
    """
    package = folder / "step.pt2"
    options = torch._inductor.list_mode_options(program.mode) | {"autotune_num_choices_displayed": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's compiler uses APIs that PyTorch has deprecated
        torch._inductor.aoti_compile_and_package(
            _exported(program), package_path=str(package), inductor_configs=options
        )
    return package


def _exported(program: Program) -> torch.export.ExportedProgram:
    """The step as a graph of operators.

    `torch.export` alone cannot trace a gradient with a custom backward function; `make_fx` can.
    """
    # Imported here, because they take longer than loading a library.
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    function = Update(program.structure(), program.config(), torch.device("cpu"), fused=False)

    def step(*tensors: Tensor) -> tuple[Tensor]:
        buffers, (unused, rates, *inputs) = Buffers(*tensors[:5]), tensors[5:]
        batch = _batch(program, inputs)
        gradient, loss = function.gradient(buffers.flat, batch, unused if program.pads else None)
        function.apply(buffers, gradient, rates)
        return (loss,)

    dtype = getattr(torch, program.parameters.removeprefix("torch."))
    buffers = function.zeros(dtype, torch.device("cpu"))
    unused, rates = torch.zeros(program.model.vocab_size, dtype=dtype), torch.zeros(2, dtype=dtype)
    ids, targets, *extra = _inputs(program, _example(program))
    tensors = (*buffers.tensors(), unused, rates, ids, targets, *extra)
    # The number of tokens differs between batches, unless padding fills all places of so small a batch.
    places = program.rows * program.model.block_size
    open_length = TOKEN_INPUTS if program.packed and len(ids) < places else ()
    mode = FakeTensorMode(shape_env=ShapeEnv())

    def fake(index: int, tensor: Tensor) -> Tensor:
        sizes = [DimDynamic.STATIC] * tensor.dim()
        if index in open_length:
            sizes[0] = DimDynamic.DYNAMIC
        context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
        return mode.from_tensor(tensor, symbolic_context=context)

    with mode, _compiling():
        graph = make_fx(step, tracing_mode="symbolic")(*(fake(i, x) for i, x in enumerate(tensors)))
    use_onednn(graph)
    length = torch.export.Dim("tokens", min=2, max=places)
    shapes = tuple({0: length} if index in open_length else None for index in range(len(tensors)))
    return torch.export.export(graph, tensors, dynamic_shapes=shapes)


@contextmanager
def _compiling() -> Iterator[None]:
    """Make `torch.compiler.is_compiling()` true, as `torch.compile` and `torch.export` do."""
    was = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = was


def _example(program: Program) -> Batch:
    """A batch for tracing, the same for all lists, so that all of them make the same library."""
    B, T, V = program.rows, program.model.block_size, program.model.vocab_size
    ids = torch.zeros(B, T, dtype=torch.int64)
    lengths = torch.full((B,), max(2, T // 2) if program.packed else T)
    batch = shaped(ids, ids, lengths, "packed" if program.packed else "padded")
    if not program.constants["ngram_smoothing"]:
        return batch
    return replace(batch, smooth=torch.zeros(*batch.ids.shape, V))


def _batch(program: Program, inputs: Sequence[Tensor]) -> Batch:
    """A batch from the tensors of `_inputs`."""
    ids, targets, *extra = inputs
    segments = None
    if program.packed:
        positions, places, tokens, real, *extra = extra
        segments = Segments(program.model.block_size, positions, places, tokens, real)
    return Batch(ids, targets, segments, extra[0] if extra else None)
