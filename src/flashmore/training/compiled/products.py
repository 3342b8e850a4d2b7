"""Matrix products of a traced step by oneDNN, where it is faster here than PyTorch's BLAS.

On a CPU, PyTorch computes products of float32 by MKL, which uses AVX-512 on Intel's processors only. oneDNN,
which PyTorch has for layers in inference, uses it everywhere: on an AMD EPYC it is about twice as fast
(docs/log.md).
"""

import math
import time
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

REPEATS, ROUNDS = 20, 5
"""Calls in a timed block, and blocks of each of both; the shortest count."""
FASTER = 0.95
"""oneDNN is used where it takes less than this share of the time."""


@torch.library.custom_op("flashmore::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product of x (M, K) and the transpose of the weight (N, K), plus bias (N,), by oneDNN: (M, N)."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


@linear.register_fake
def _(x: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
    return x.new_empty(x.size(0), weight.size(0))


@cache
def _register_lowering() -> None:
    """Tell PyTorch's compiler how to call it; its own way takes weights that are constants alone."""
    from torch._inductor.ir import FixedLayout, TensorBox
    from torch._inductor.lowering import register_lowering
    from torch._inductor.mkldnn_ir import LinearUnary

    class Linear(LinearUnary):
        @classmethod
        def of(cls, x: Any, weight: Any, bias: Any) -> Any:
            """As `create` of the base class, but oneDNN reads a transposed weight as it is, not a copy."""
            x = cls.require_contiguous(cls.realize_input(x))
            weight = cls.realize_input(weight)
            options: list[Any] = ["none", [-1], ""]
            inputs = [x, weight]
            if bias is None:
                options.insert(0, None)
            else:
                inputs.append(cls.require_contiguous(cls.realize_input(bias)))
            sizes = [x.get_size()[0], weight.get_size()[0]]
            layout = FixedLayout(device=x.get_device(), dtype=x.get_dtype(), size=sizes)
            return Linear(layout, inputs, options)

    @register_lowering(torch.ops.flashmore.linear.default, type_promotion_kind=None)
    def _(x: Any, weight: Any, bias: Any) -> Any:
        return TensorBox.create(Linear.of(x, weight, bias))


def has_bfloat16() -> bool:
    """Whether oneDNN computes products in bfloat16 on this CPU."""
    return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def use_onednn(graph: GraphModule) -> None:
    """Replace products of float32 matrices in a graph of operators, where that is faster on this machine.

    Args:
        graph: a graph whose nodes have fake tensors in their `meta["val"]`.
    """
    aten = torch.ops.aten
    if not torch._C._has_mkldnn:
        return
    _register_lowering()
    for node in list(graph.graph.nodes):
        if node.target is aten.mm.default:
            bias, (a, b) = None, node.args
        elif node.target is aten.addmm.default and not node.kwargs:
            bias, a, b = node.args
            if bias.meta["val"].dim() != 1:
                continue
        else:
            continue
        if _is_faster(_Matrix.of(a), _Matrix.of(b)):
            with graph.graph.inserting_before(node):
                transposed = graph.graph.call_function(aten.t.default, (b,))
                transposed.meta["val"] = b.meta["val"].t()
                made = graph.graph.call_function(torch.ops.flashmore.linear.default, (a, transposed, bias))
            made.meta = dict(node.meta)
            node.replace_all_uses_with(made)
            graph.graph.erase_node(node)
    graph.recompile()


@dataclass(frozen=True)
class _Matrix:
    """The form of a matrix."""

    rows: int
    columns: int
    transposed: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, node: Node) -> "_Matrix":
        """That of a node's value, with the sizes of the example for symbols."""
        value: Tensor = node.meta["val"]
        rows, columns, stride = (_value(size) for size in (*value.shape, value.stride(1)))
        return cls(rows, columns, stride != 1, value.dtype)

    def random(self) -> Tensor:
        """A random matrix of this form."""
        sizes = (self.columns, self.rows) if self.transposed else (self.rows, self.columns)
        made = torch.randn(sizes, dtype=self.dtype, generator=torch.Generator())  # not that of dropout
        return made.t() if self.transposed else made


def _value(size: int | torch.SymInt) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


@cache
def _is_faster(a: _Matrix, b: _Matrix) -> bool:
    """Whether oneDNN computes a product of such matrices faster than PyTorch's matmul."""
    if a.dtype != torch.float32 or b.dtype != torch.float32:
        return False
    x, y = a.random(), b.random()
    onednn = torch.ops.mkldnn._linear_pointwise
    sides = (partial(torch.mm, x, y), partial(onednn, x, y.t(), None, "none", [], ""))
    shortest = [math.inf, math.inf]
    for _ in range(ROUNDS):
        for side, run in enumerate(sides):
            began = time.perf_counter()
            for _ in range(REPEATS):
                run()
            shortest[side] = min(shortest[side], time.perf_counter() - began)
    return shortest[1] < FASTER * shortest[0]
