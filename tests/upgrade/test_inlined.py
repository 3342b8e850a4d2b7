"""A helper's lines in the place of its call: the same values and gradients, whatever the names mean there."""

from types import ModuleType

import pytest
import torch

from flashmore.upgrade.edits import apply
from flashmore.upgrade.find import find_sites

HEAD = """import math
import torch
import torch.nn as nn
import torch.nn.functional as F

CALLS = []


def weighted(scores, value):
    p = scores.softmax(dim=-1)
    return p @ value


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.0)
        self.out = nn.Linear(8, 8, bias=False, dtype=torch.float64)

"""
PRODUCT = "q @ k.transpose(-2, -1)"
REWRITTEN = {
    "locals that live on here": """
    def att(self, scores, value):
        x = scores.softmax(-1)
        q = x @ value
        return q

    def forward(self, q, k, v):
        x = q * 2
        o = self.att({product}, v)
        return o + x + q
""",
    "parameters that it sets": """
    def att(self, scores, value, mask):
        mask = mask.unsqueeze(1) == 0
        value = value + 1
        return scores.masked_fill(mask, float("-inf")).softmax(-1) @ value

    def forward(self, q, k, v):
        mask = (torch.arange(5) > 0)[None].long().expand(3, 5)[:, None]
        y = self.att({product}, v, mask)
        return y + v.mean() + mask.sum()
""",
    "one tensor for two parameters": """
    def att(self, s, v, w):
        v = v * 2
        return s.softmax(-1) @ v + w

    def forward(self, q, k, v):
        return self.att({product}, v, v)
""",
    "in a loop": """
    def att(self, scores, value):
        a = scores.softmax(-1)
        return a @ value

    def forward(self, q, k, v):
        a = torch.zeros(())
        for _ in range(2):
            q = q + a
            o = self.att({product}, v)
            a = a + o.mean()
        return o + a
""",
    "a parameter that it sets, in a loop": """
    def att(self, scores, value):
        value = value * 2
        return scores.softmax(-1) @ value

    def forward(self, q, k, v):
        total = 0
        for _ in range(2):
            o = self.att({product}, v)
            total = total + o
        return total
""",
    "a local that a lambda reads": """
    def att(self, scores, value):
        z = scores.softmax(-1)
        return z @ value

    def forward(self, q, k, v):
        z = 3
        f = lambda: z
        o = self.att({product}, v)
        return o * f()
""",
    "defaults": """
    def att(self, scores, value, scale=2.0, mask=None):
        scores = scores * scale
        if mask is not None:
            scores = scores + mask
        return scores.softmax(-1) @ value

    def forward(self, q, k, v):
        return self.att({product}, value=v)
""",
    "several returns": """
    def att(self, scores, value, mask):
        if mask is None:
            return scores.softmax(-1) @ value
        return scores.masked_fill(mask, float("-inf")).softmax(-1) @ value

    def forward(self, q, k, v, mask=None):
        return self.att({product}, v, mask)
""",
    "within a larger expression": """
    def att(self, scores, value):
        return self.dropout(scores.softmax(-1)) @ value

    def forward(self, q, k, v):
        return self.out(self.att({product} / math.sqrt(8), v)) + k
""",
    "results that are unpacked": """
    def att(self, scores, value):
        w = scores.softmax(-1)
        return w @ value, w

    def forward(self, q, k, v):
        o, _ = self.att({product}, v)
        return o
""",
    "a name that is read after an exception": """
    def att(self, scores, value):
        n = scores.softmax(-1)
        return n @ value

    def forward(self, q, k, v):
        n = 5
        try:
            o = self.att({product}, v)
        finally:
            n += 1
        return o * n
""",
    "a local with a function's name": """
    def att(self, scores, value):
        weighted = scores.softmax(-1)
        return weighted @ value

    def forward(self, q, k, v):
        one = weighted({product}, v)
        return one - 2 * self.att({product}, v)
""",
    "a function": """
    def forward(self, q, k, v):
        return weighted({product} / 3, v).transpose(1, 2)
""",
    "a static method": """
    @staticmethod
    def att(scores, value):
        p = scores.softmax(dim=-1)
        return p @ value

    def forward(self, q, k, v):
        return self.att({product} / 3, v)
""",
}
LEFT = {
    "an operand that it changes is read before": """
    def att(self, scores, value):
        value.add_(1)
        return scores.softmax(-1) @ value

    def forward(self, q, k, v):
        v = v.clone()
        return v.sum() + self.att({product}, v)
""",
    "a module's name that is a local here": """
    def att(self, scores, value):
        return F.softmax(scores, -1) @ value

    def forward(self, q, k, v):
        F = self.att({product}, v)
        return F
""",
    "under a condition": """
    def att(self, scores, value):
        return scores.softmax(-1) @ value

    def forward(self, q, k, v, flag=True):
        return self.att({product}, v) if flag else v
""",
    "it counts": """
    def att(self, scores, value):
        CALLS.append(1)
        return scores.softmax(-1) @ value

    def forward(self, q, k, v):
        return self.att({product}, v) * len(CALLS)
""",
    "another function is stored under its name": """
    def reset(self):
        self.att = lambda scores, value: value

    def att(self, scores, value):
        return scores.softmax(-1) @ value

    def forward(self, q, k, v):
        self.reset()
        return self.att({product}, v)
""",
    "a private attribute of another class": """
        self.__p = 1.0

    def att(self, scores, value):
        return (scores * self.__p).softmax(-1) @ value


class Below(Attention):
    def forward(self, q, k, v):
        self.__p = 2.0
        return self.att({product}, v)


Attention = Below
""",
    "a method that a third class has, too": """
    def att(self, scores, value):
        return scores.softmax(-1) @ value


class Left(Attention):
    def forward(self, q, k, v):
        return self.att({product}, v)


class Right(Attention):
    def att(self, scores, value):
        return scores.relu() @ value


class Both(Left, Right):
    pass


Attention = Both
""",
    "a callee that is computed first": """
    def att(self, scores, value):
        return scores.softmax(-1) @ value.mul_(2)

    def pick(self, value):
        return lambda x, sum=value.sum(): x + sum

    def forward(self, q, k, v):
        v = v.clone()
        return self.pick(v)(self.att({product}, v))
""",
    "it sets self": """
    def att(self, scores, value):
        w = scores.softmax(-1)
        self = 3.0
        return w @ value * self

    def forward(self, q, k, v):
        o = self.att({product}, v)
        return o * self.dropout.p
""",
    "an object that is called self": """
    def att(self, scores, value):
        w = scores.softmax(-1)
        return w @ value

    @staticmethod
    def of(self, q, k, v):
        o = self.att({product}, v)
        return o

    def forward(self, q, k, v):
        return self.of(Doubled(), q, k, v)


class Doubled:
    def att(self, scores, value):
        return 2 * value
""",
    "weights that are read": """
    def att(self, scores, value):
        w = scores.softmax(-1)
        return w @ value, w

    def forward(self, q, k, v):
        o, w = self.att({product}, v)
        return o + w.mean()
""",
}


def results(source: str) -> list[torch.Tensor]:
    """The output and the gradients."""
    module = ModuleType("model")
    exec(compile(source, "model.py", "exec"), vars(module))
    torch.manual_seed(0)
    inputs = [torch.randn(3, 2, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    torch.manual_seed(1)
    out = module.Attention()(*inputs)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), inputs, materialize_grads=True)]


@pytest.mark.parametrize("name", [*REWRITTEN, *LEFT])
def test_lines_mean_the_same_in_the_place_of_a_call(name: str) -> None:
    source = HEAD + (REWRITTEN | LEFT)[name].lstrip("\n").format(product=PRODUCT)
    sites = find_sites(source)
    after = apply(source, sites)
    assert (after != source) is (name in REWRITTEN)
    for was, now in zip(results(source), results(after), strict=True):
        torch.testing.assert_close(now, was)
