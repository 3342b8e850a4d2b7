"""Training steps compiled ahead of time, and kept in the user's cache, where later runs find them.

https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html

`torch.compile` takes 20 s or more before the first step, and several seconds even if its own caches have
everything, because it traces the step again. AOTInductor makes a library of the step, which loads in
milliseconds, without a compiler.
"""

import os
import tempfile
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashmore.config import TrainConfig
from flashmore.errors import StorageError
from flashmore.models.config import ModelConfig
from flashmore.specs import backends, model_spec
from flashmore.terminal import say
from flashmore.training.compiled import libraries
from flashmore.training.compiled.products import use_onednn
from flashmore.training.compiled.program import (
    TOKEN_INPUTS,
    Program,
    batch_of,
    example_of,
    inputs_of,
    pads,
    program_of,
)
from flashmore.training.compiled.update import Buffers, Update
from flashmore.training.dataset import Batch

UNUSED = -1e9
"""Added to the logits of ids that the vocabulary does not have: their probability is exactly 0."""


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
        if program is not None and libraries.find(program.digest, automatic=measured) is not None:
            return name
    return None


def compile_for_later(program: Program, *, automatic: bool) -> None:
    """Compile a step and put it into the cache, as `libraries.keep` does.

    Raises:
        Exception: PyTorch's compiler failed; see `flashmore.errors.is_of_the_compiler`.
    """
    with tempfile.TemporaryDirectory(prefix="flashmore-") as scratch:
        libraries.keep(program.digest, _build(program, Path(scratch)), automatic=automatic)


class Compiled:
    """A compiled step, from the cache or else compiled at the first call.

    Args:
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
        inputs = inputs_of(self.program, batch)
        (loss,) = self._library.run([*buffers.tensors(), self._unused, rates, *inputs])
        assert isinstance(loss, Tensor)
        return loss


def _load(program: Program, *, automatic: bool) -> Any:
    path = libraries.find(program.digest)
    if path is not None:
        with suppress(OSError):
            os.utime(path)  # the longest unused is removed first
        try:
            return libraries.load(path)
        except StorageError as error:  # a system whose C library is older, for example
            say(f"the compiled step in the cache cannot be loaded, so it is compiled again: {error.found}")
    with suppress(StorageError):  # made before PyTorch's compiler makes it, for this user alone
        libraries.writable_folder()
    with tempfile.TemporaryDirectory(prefix="flashmore-") as scratch:
        path = _build(program, Path(scratch))
        try:
            libraries.keep(program.digest, path, automatic=automatic)
        except StorageError as error:
            say(f"the compiled step is not kept for later runs: {error.found}")
        return libraries.load(path)  # it is unpacked to a folder of its own


def _build(program: Program, folder: Path) -> Path:
    """Compile a step to a file in a folder, with as many threads as this process uses.

    Raises:
        Exception: PyTorch's compiler failed; see `flashmore.errors.is_of_the_compiler`.
    """
    package = folder / "step.pt2"
    options = torch._inductor.list_mode_options(program.mode) | {
        "autotune_num_choices_displayed": 0,
        # Optimizing the calls of the kernels takes 5 s and makes no step faster (docs/log.md). Precompiled
        # headers take longer than they save for two files.
        "aot_inductor.compile_wrapper_opt_level": "O0",
        "aot_inductor.precompile_headers": False,
    }
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
        batch = batch_of(program, inputs)
        gradient, loss = function.gradient(buffers.flat, batch, unused if pads(program.model) else None)
        function.apply(buffers, gradient, rates)
        return (loss,)

    dtype = getattr(torch, program.parameters.removeprefix("torch."))
    buffers = function.zeros(dtype, torch.device("cpu"))
    unused, rates = torch.zeros(program.model.vocab_size, dtype=dtype), torch.zeros(2, dtype=dtype)
    ids, targets, *extra = inputs_of(program, example_of(program))
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
