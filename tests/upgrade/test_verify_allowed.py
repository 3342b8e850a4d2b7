"""Extracted lines are read before they run: nothing that reaches outside passes."""

import pytest

from flashmore.upgrade.site import Fragment, Input
from flashmore.upgrade.verify.allowed import NotAllowed, compiled
from flashmore.upgrade.verify.functions import functions_of

X = Input("x", "x", "tensor", ("B", "D"))
FINE = "def new(x):\n    return x\n"

REFUSED = (
    "import os", "__import__('os')", "open('f')", "eval('1')", "exec('1')", "getattr(x, 'a')", "print(x)",
    "x.__class__", "x.numpy()", "x.register_hook(x)", "x.backward()", "torch.load('f')", "torch.save(x, 'f')",
    "torch.ops", "torch", "y = torch", "math.__loader__", "np.load('f')", "torch.hub.load('a')",
    "globals()", "x.tofile('f')", "F.__builtins__", "(lambda: __import__)()", "unknown + 1", "del x",
    "[c for c in ().__class__.__bases__]", "'{0.__class__}'.format(x)", "f'{x}'", "yield x", "global x",
    "while True: pass", "class A: pass", "torch.serialization", "torch.float32.to_complex", "type(x)",
    "torch.cuda.memory._snapshot()", "x.apply_(abs)", "raise ValueError", "F = x",
    "with open('f') as f: pass", "getattr(x, 'p')", "getattr(torch, 'p', 0)", "getattr(x, 'p', open('f'))",
)  # fmt: skip
STORES = (
    "{} = x", "{}, y = x, x", "[y, {}] = x, x", "y, *{} = x, x", "(y, (z, {})) = x, x", "{} += x",
    "y = {} = x", "for {} in (x,): pass", "for y, ({}, z) in (x,): pass", "y = [0 for {} in (x,)]",
    "y = list(0 for {} in (x,))", "y = [0 for y in (x,) for {} in (y,)]", "y = [0 for y, *{} in (x,)]",
    "with torch.no_grad() as {}: pass", "del {}", "{}: int = 1",
)  # fmt: skip
TARGETS = (
    "torch.Tensor.max", "torch.inf", "x.data", "x.T", "F.softmax", "nn.Dropout.p", "math.pi", "x[0].data",
    "torch.tensor(1)[0]", "x.data[0]", "(lambda: x).T", "torch", "math", "F",
)  # fmt: skip
CHANGES = (
    "torch.Tensor.mul_(x, 2)", "torch.Tensor.copy_", "map(torch.Tensor.zero_, (x,))", "float.append(x)",
    "einsum.fill_(0)", "torch.pi.mul_(2)", "torch.manual_seed(0)", "torch.set_default_dtype(x)", "x.set_(x)",
    "torch.set_grad_enabled(False)", "torch.use_deterministic_algorithms(True)", "x.requires_grad_()",
    "setattr(x, 'data', x)", "x.__setattr__('data', x)", "x.resize_(1)", "x.random_()",
    "x.register_buffer('a', x)",
    "x.__setitem__(0, x)", "torch.default_generator", "torch.random.fork_rng()", "x.load_state_dict({})",
    "torch.autocast('cpu').__enter__()", "torch.set_num_threads(2)", "(y := x)", "[(F := 1) for y in (x,)]",
    "nn.Dropout.train(x)", "x.train()", "torch.Tensor.append(x, 1)", "x.share_memory_()",
    "with torch.no_grad: pass", "with x: pass", "with F.dropout(x): pass", "with (lambda: x)(): pass",
    "match x:\n        case torch.Tensor(max=y): pass", "import torch as y", "from torch import *",
    "try: pass\n    except x as y: pass", "async def f(): pass", "nonlocal x", "y = {a for a in (x,)}",
    "y = {a: a for a in (x,)}", "y = [a async for a in x]", "def f(a=open('f')): pass",
)  # fmt: skip


@pytest.mark.parametrize("line", REFUSED)
def test_a_line_that_reaches_outside_is_refused(line: str) -> None:
    fragment = Fragment((X,), f"def old(x):\n    {line}\n    return x\n", FINE)
    with pytest.raises(NotAllowed):
        compiled(fragment)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("store", STORES)
def test_a_store_to_anything_but_a_name_of_its_own_is_refused(store: str, target: str) -> None:
    fragment = Fragment((X,), f"def old(x):\n    y = z = x\n    {store.format(target)}\n    return x\n", FINE)
    with pytest.raises(NotAllowed):
        compiled(fragment)


@pytest.mark.parametrize("line", CHANGES)
def test_a_call_that_changes_what_the_lines_did_not_make_is_refused(line: str) -> None:
    with pytest.raises(NotAllowed):
        compiled(Fragment((X,), f"def old(x):\n    {line}\n    return x\n", FINE))


def test_lines_that_are_nested_too_deeply_are_refused() -> None:
    deep = "def old(x):\n    return " + "-" * 5000 + "x\n"
    with pytest.raises(NotAllowed):
        compiled(Fragment((X,), deep, FINE))


def test_a_builtin_that_is_bound_elsewhere_is_not_there() -> None:
    sneaky = "def old(x):\n    [open for open in [1]]\n    return open('trap', 'w')\n"
    with pytest.raises(NameError):
        functions_of(Fragment((X,), sneaky, FINE))[0](1)
    with pytest.raises(NotAllowed):
        functions_of(Fragment((X,), sneaky.replace("open", "getattr"), FINE))


@pytest.mark.parametrize(
    "source",
    [
        "def old(x=open('f')):\n    return x\n",
        "@open\ndef old(x):\n    return x\n",
        "open('f')\ndef old(x):\n    return x\n",
        "def old(x, y):\n    return x\n",
        "def old(*x):\n    return x\n",
        "def old(x):\n    pass\n",
        "def other(x):\n    return x\n",
        "def old(x) -> open('f'):\n    return x\n",
        "def old(x: open('f')):\n    return x\n",
        "def old(x:\n",
        "def old(x):\n    return '\0'",
    ],
)
def test_only_one_plain_function_of_the_inputs_is_taken(source: str) -> None:
    with pytest.raises(NotAllowed):
        compiled(Fragment((X,), source, FINE))


@pytest.mark.parametrize(
    "line",
    [
        "y = torch.nn.functional.softmax(x, dim=-1, dtype=torch.float32).to(x.dtype)",
        "x = x.masked_fill(x == 0, -torch.finfo(x.dtype).max)",
        "q, k = map(lambda t: t.reshape(1, -1), (x, x))",
        "for part in x.unbind(0): x = x + part",
        "with torch.autocast('cpu', enabled=False): x = x.float()",
        "x = rearrange(x, 'b d -> d b')",
        "x *= math.sqrt(x.size(-1)) ** -0.5 if x.dim() > 2 else np.sqrt(2)",
        "x[:, :, ..., None]",
        "p = getattr(x, 'p', 0.0)",
        "x[:, x[0] > 0] = -torch.inf",
        "y = x.clone()\n    y[0][1], (y[2], *z) = 1.0, (2.0, 3.0)",
        "x[0] += 1",
        "x.mul_(2).add_(1)",
        "(x @ x.mT).masked_fill_(x > 0, 0)",
        "y = []\n    y.append(x)",
        "y = [a + b for a, (b, *c) in zip(x, x) if a]",
        "with torch.cuda.amp.autocast(enabled=False), torch.no_grad(): x = x.float()",
    ],
)
def test_what_attention_is_written_with_passes(line: str) -> None:
    compiled(Fragment((X,), f"def old(x):\n    {line}\n    return x\n", FINE))
