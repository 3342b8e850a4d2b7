"""A run as an ONNX model with the input `ids` (batch, length) and the output `logits`."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flashmore.runs import Run
from flashmore.specs import model_spec

OPSET = 18
"""The version of ONNX's operators."""
_GATES = {"rnn": ("RNN", (0,)), "gru": ("GRU", (1, 0, 2)), "lstm": ("LSTM", (0, 3, 1, 2))}
"""ONNX's operator, and its order of PyTorch's gates: z r h for r z n, and i o f c for i f g o."""


def write(run: Run, model: nn.Module, folder: Path) -> None:
    """Write model.onnx."""
    import onnx

    recurrent = model_spec(run.model.model).recurrent_kernel
    made = (_recurrent if recurrent else _exported)(run, model)
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, folder / "model.onnx")


def example(run: Run) -> tuple[Tensor, dict[int, torch.export.Dim]]:
    """Ids (B, T) for tracing a model, and the dimensions that may have other sizes."""
    context = run.model.block_size
    sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1, max=context)}
    if context == 1:
        del sizes[1]
    return torch.zeros(2, max(2, context // 2) if context > 1 else 1, dtype=torch.int64), sizes


class _Named(nn.Module):
    """Keeps the names of parameters apart from those of the input and output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(ids)
        return logits


def _exported(run: Run, model: nn.Module) -> Any:
    """By torch's exporter: https://docs.pytorch.org/docs/stable/onnx_export.html."""
    ids, sizes = example(run)
    program: Any = torch.onnx.export(
        _Named(model).eval(),
        (ids,),
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=(sizes,),
        input_names=["ids"],
        output_names=["logits"],
        verbose=False,
    )
    return program.model_proto


def _recurrent(run: Run, model: nn.Module) -> Any:
    """By hand: torch's exporter unrolls recurrent kernels for one length."""
    from onnx import TensorProto, helper, numpy_helper

    module: Any = model
    operator, order = _GATES[run.model.model]
    C, core = run.model.n_embd, module.core

    def gates(*tensors: Tensor) -> Tensor:
        """In ONNX's order, along the first dimension, for one direction: (1, …)."""
        return torch.cat([torch.cat([each.chunk(len(order))[gate] for gate in order]) for each in tensors])[
            None
        ]

    weights = {
        "wte": module.wte.weight,
        "start": module.start,
        "w": gates(core.weight_ih_l0),
        "r": gates(core.weight_hh_l0),
        "b": gates(core.bias_ih_l0, core.bias_hh_l0),
        "head_weight": module.lm_head.weight.T,
        "head_bias": module.lm_head.bias,
    }
    states = ["start"]
    if operator == "LSTM":
        weights["start_cell"] = module.start_cell
        states.append("start_cell")
    constants = {name: value.detach().contiguous().numpy() for name, value in weights.items()}
    constants |= {"one": np.array([1]), "direction": np.array([1]), "width": np.array([C])}
    attributes: dict[str, Any] = {"hidden_size": C}
    if operator == "GRU":
        attributes["linear_before_reset"] = int(run.model.reset_after)
    node = helper.make_node
    nodes = [
        node("Transpose", ["ids"], ["times"], perm=[1, 0]),
        node("Gather", ["wte", "times"], ["x"]),  # (T, B, C)
        node("Shape", ["ids"], ["batch"], start=0, end=1),
        node("Concat", ["one", "batch", "width"], ["state_shape"], axis=0),
        *(node("Expand", [name, "state_shape"], [f"{name}_of_each"]) for name in states),  # (1, B, C)
        node(
            operator, ["x", "w", "r", "b", "", *(f"{name}_of_each" for name in states)], ["y"], **attributes
        ),
        node("Squeeze", ["y", "direction"], ["outputs"]),  # (T, 1, B, C) -> (T, B, C)
        node("Transpose", ["outputs"], ["by_sequence"], perm=[1, 0, 2]),
        node("MatMul", ["by_sequence", "head_weight"], ["scores"]),
        node("Add", ["scores", "head_bias"], ["logits"]),
    ]
    shape = ["batch_size", "length"]
    graph = helper.make_graph(
        nodes,
        run.model.model,
        [helper.make_tensor_value_info("ids", TensorProto.INT64, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*shape, run.model.vocab_size])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def load(run: Run, folder: Path) -> AbstractContextManager[Any]:
    """The logits that onnxruntime computes."""
    from onnxruntime import InferenceSession, SessionOptions

    del run
    options: Any = SessionOptions()
    options.log_severity_level = 3  # errors only
    session: Any = InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return nullcontext(lambda ids: torch.from_numpy(session.run(None, {"ids": ids.numpy()})[0]))
