"""Extracted lines are read before they run: nothing that reaches outside passes."""

import pytest

from flashmore.upgrade.prove.allowed import NotAllowed, compiled
from flashmore.upgrade.prove.fragment import functions_of
from flashmore.upgrade.site import Fragment, Input

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


@pytest.mark.parametrize("line", REFUSED)
def test_a_line_that_reaches_outside_is_refused(line: str) -> None:
    fragment = Fragment((X,), f"def old(x):\n    {line}\n    return x\n", FINE)
    with pytest.raises(NotAllowed):
        compiled(fragment)


def test_a_builtin_that_is_bound_elsewhere_is_not_there() -> None:
    sneaky = "def old(x):\n    [open for open in [1]]\n    return open('trap', 'w')\n"
    with pytest.raises(NameError):
        functions_of(Fragment((X,), sneaky, FINE)).old(1)
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
    ],
)
def test_what_attention_is_written_with_passes(line: str) -> None:
    compiled(Fragment((X,), f"def old(x):\n    {line}\n    return x\n", FINE))
