"""Python files that try to be run, to write, to hang, or to write to a terminal.

They are made of payloads in places, the same every time, and of oddities. `CANARY` stands for the path of a
file that must never come into being.
"""

from collections.abc import Iterator
from itertools import product

HEAD = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n\n"
ATTENTION = """def attend(q, k, v):
    s = q @ k.transpose(-2, -1) * 0.5
    w = F.softmax(s, dim=-1)
    return w @ v
"""
HELPED = ATTENTION.replace("F.softmax(s", "F.softmax(helper(s)")
RUN = (
    "__import__('pathlib').Path('CANARY').touch()",
    "open('CANARY', 'w').close()",
    "exec('open(\"CANARY\", chr(119))')",
    "eval('open(\"CANARY\", chr(119))')",
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'][0](['touch', 'CANARY'])",
    "__import__('os').system('touch CANARY')",
    "getattr(__builtins__, 'open')('CANARY', 'w')",
    "(lambda: open('CANARY', 'w'))()",
    "torch.save(q, 'CANARY')",
    "q.numpy().tofile('CANARY')",
    "torch.load('evil.pt', weights_only=False)",
    "torch.hub.load('.', 'evil', source='local')",
    "torch.serialization.os.mkdir('CANARY')",
    "F.torch.utils.cpp_extension.load(name='a', sources=['CANARY'])",
    "f\"{open('CANARY', 'w')}\"",
    "q.register_hook(lambda g: open('CANARY', 'w'))",
)
"""Expressions that leave a file if they run."""

PLACES = {
    "module level": "{p}\n" + ATTENTION,
    "default argument": ATTENTION.replace("v):", "v, x={p}):"),
    "annotation": ATTENTION.replace("v):", "v: {p}):"),
    "return annotation": ATTENTION.replace("v):", "v) -> {p}:"),
    "decorator": "@{p}\n" + ATTENTION,
    "class body": "class A:\n    x = {p}\n\n\n" + ATTENTION,
    "base class": "class A({p}):\n    pass\n\n\n" + ATTENTION,
    "metaclass": "class A(metaclass={p}):\n    pass\n\n\n" + ATTENTION,
    "module __getattr__": "def __getattr__(name):\n    return {p}\n\n\n" + ATTENTION,
    "scale": ATTENTION.replace("0.5", "{p}"),
    "scale from a name": ATTENTION.replace("    s =", "    n = {p}\n    s =").replace("0.5", "n"),
    "maximum": ATTENTION.replace("0.5", "max(1, {p})"),
    "dim": ATTENTION.replace("dim=-1", "dim={p}"),
    "dtype": ATTENTION.replace("dim=-1", "dim=-1, dtype={p}"),
    "bias": ATTENTION.replace("    w =", "    s = s + {p}\n    w ="),
    "mask": ATTENTION.replace("    w =", "    s = s.masked_fill({p}, float('-inf'))\n    w ="),
    "fill": ATTENTION.replace("    w =", "    s = s.masked_fill(q > 0, {p})\n    w ="),
    "item": ATTENTION.replace("    w =", "    s[{p}] = float('-inf')\n    w ="),
    "dropout": ATTENTION.replace("    return", "    w = F.dropout(w, {p})\n    return"),
    "values": ATTENTION.replace("w @ v", "w @ ({p} or v)"),
    "operand": ATTENTION.replace("q @", "({p} or q) @"),
    "walrus": ATTENTION.replace("    w =", "    (x := {p})\n    w ="),
    "walrus in the scores": ATTENTION.replace("* 0.5", "* (x := {p})"),
    "condition": ATTENTION.replace("    w =", "    if {p}:\n        s = s * 2\n    w ="),
    "choice": ATTENTION.replace("0.5", "(0.5 if {p} else 2.0)"),
    "loop": ATTENTION.replace("    w =", "    for b in {p}:\n        s = s + b\n    w ="),
    "context": ATTENTION.replace("    w = F", "    with {p}:\n        w = F"),
    "match": ATTENTION.replace("    w =", "    match {p}:\n        case _:\n            s = s * 2\n    w ="),
    "comprehension": ATTENTION.replace("    w =", "    q, k = [t for t in (q, k) if {p}]\n    w ="),
    "assertion": ATTENTION.replace("    w =", "    assert {p}\n    w ="),
    "statement between": ATTENTION.replace("    w =", "    {p}\n    w ="),
    "returned": ATTENTION.replace("w @ v", "w @ v, {p}"),
    "helper": "def helper(s):\n    return s * {p}\n\n\n" + HELPED,
    "generator of a helper": "def helper(s):\n    yield {p}\n\n\n" + HELPED,
    "einsum": ATTENTION.replace("q @ k.transpose(-2, -1)", "torch.einsum({p}, q, k)"),
    "size": ATTENTION.replace("    s =", "    q = q.view({p}, -1)\n    s ="),
    "constant": "N = {p}\n\n\n" + ATTENTION.replace("0.5", "N"),
    "del": ATTENTION.replace("    return", "    del q[{p}]\n    return"),
    "lambda": ATTENTION.replace("    w = F.softmax(s", "    w = (lambda t: F.softmax({p} or t, dim=-1))(s"),
    "attribute of self": (
        "class A(nn.Module):\n    def __init__(self):\n        self.x = {p}\n\n"
        "    def forward(self, q, k, v):\n        return F.softmax(q @ k.mT * self.x, dim=-1) @ v\n"
    ),
    "property": (
        "class A(nn.Module):\n    @property\n    def x(self):\n        return {p}\n\n"
        "    def forward(self, q, k, v):\n        return F.softmax(q @ k.mT * self.x, dim=-1) @ v\n"
    ),
}  # fmt: skip
STORES = (
    "{} = q", "{}, y = q, k", "[y, *{}] = q, k", "(y, (z, {})) = q, (k, v)", "{} += q", "y = {} = q",
    "for {} in (q,): pass", "for y, {} in ((q, k),): pass", "y = [0 for {} in (q,)]",
    "y = [0 for *{}, z in (q,)]", "y = list(0 for {} in (q,))", "with torch.no_grad() as {}: pass",
    "del {}", "{}: int = q",
)  # fmt: skip
TARGETS = (
    "torch.Tensor.max", "torch.Tensor.softmax", "F.softmax", "F.scaled_dot_product_attention",
    "torch.matmul", "q.__class__.__matmul__", "torch.inf", "torch.autograd.grad",
)  # fmt: skip
BEFORE_SOFTMAX = "    {line}\n    w ="


def executing(canary: str) -> Iterator[tuple[str, bytes]]:
    """Every payload in every place, by name."""
    for (place, template), (number, payload) in product(PLACES.items(), enumerate(RUN)):
        source = HEAD + template.replace("{p}", payload.replace("CANARY", canary))
        yield f"{place.replace(' ', '_')}_{number}.py", source.encode()


def storing() -> Iterator[tuple[str, bytes]]:
    """Every kind of store to every target, inside of an attention."""
    for (number, store), (other, target) in product(enumerate(STORES), enumerate(TARGETS)):
        line = BEFORE_SOFTMAX.format(line=store.format(target))
        yield f"store_{number}_{other}.py", (HEAD + ATTENTION.replace("    w =", line)).encode()


CONTROLS = {
    "escape": "\x1b[2J\x1b]0;owned\x07", "c1": "\x9b31m\x90q\x9c\x85", "bidi": "\u202e\u2066\u2069\u200f",
    "bell": "\x07\x08\x7f", "osc8": "\x1b]8;;file:///etc/passwd\x1b\\x\x1b]8;;\x1b\\",
}  # fmt: skip
SPOKEN = {
    "comment": ATTENTION.replace("    w =", "    # {c}\n    w ="),
    "comment in the product": ATTENTION.replace("w @ v", "(  # {c}\n        w @ v\n    )"),
    "docstring": ATTENTION.replace("    s =", '    """{c}"""\n    s ='),
    "guard": ATTENTION.replace("    w =", "    if mode == '{c}':\n        s = s.tanh()\n    w ="),
    "equation": ATTENTION.replace("q @ k.transpose(-2, -1)", "torch.einsum('{c}', q, k)"),
    "flag": ATTENTION.replace("    return", "    if flags['{c}']:\n        return w @ v, w\n    return"),
    "subscript": ATTENTION.replace("q @", "x['{c}'] @"),
    "mask": ATTENTION.replace("    w =", "    s = s + masks['{c}']\n    w ="),
    "scale": ATTENTION.replace("0.5", "scales['{c}']"),
    "syntax error": "x = {c}\n# softmax\n",
    "encoding": "# coding: {c}\n# softmax\n",
}  # fmt: skip


def speaking() -> Iterator[tuple[str, bytes]]:
    """Control characters wherever a report may quote the source."""
    for (place, template), (name, characters) in product(SPOKEN.items(), CONTROLS.items()):
        source = HEAD * (place != "encoding") + template.replace("{c}", characters)
        yield f"{place.replace(' ', '_')}_{name}.py", source.encode()


def _attention(lines: str = "", scale: str = "0.5") -> bytes:
    body = ATTENTION.replace("0.5", scale).replace("    w =", f"{lines}    w =")
    return (HEAD + body).encode()


def _many(line: str, count: int) -> str:
    return "".join(f"    {line.format(number)}\n" for number in range(count))


def _nested(word: str, count: int, inner: str = "2") -> str:
    for _ in range(count):
        inner = word.format(inner)
    return inner


def _calls(width: int) -> str:
    helpers = [f"def h{n}(x):\n    return {' + '.join([f'h{n + 1}(x)'] * width)}\n\n\n" for n in range(5)]
    return "".join(helpers) + "def h5(x):\n    return x\n\n\n" + ATTENTION.replace("* 0.5", "* h0(q)")


def _classes(count: int) -> str:
    """As many ways to the first class as two to the power of the count."""
    pairs = "".join(
        f"class A{n}(A{n - 1}, B{n - 1}):\n    pass\nclass B{n}(A{n - 1}, B{n - 1}):\n    pass\n"
        for n in range(1, count)
    )
    forward = ATTENTION.replace("def attend(q", "def forward(self, q").replace("0.5", "self.scale")
    last = f"class M(A{count - 1}, B{count - 1}):\n{_indented(forward)}"
    return f"class A0:\n    pass\nclass B0:\n    pass\n{pairs}{last}"


def _places(line: str) -> bytes:
    """Three hundred functions, no two alike."""
    lines = (f"    {line.format(number)}\n    w =" for number in range(300))
    made = (ATTENTION.replace("attend", f"f{n}").replace("    w =", each) for n, each in enumerate(lines))
    return (HEAD + "\n\n".join(made)).encode()


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


FLAGS = "v, " + ", ".join(f"b{number}=None" for number in range(12)) + "):"
DEEP_IFS = "".join("    " + "  " * n + "if q:\n" for n in range(90)) + "    " + "  " * 90 + "pass\n"
DEEP_FUNCTIONS = "".join(" " * n + f"def f{n}():\n" for n in range(95)) + " " * 95 + "pass\n# softmax @\n"
NUMPY = "import numpy as np\n\n\ndef attend(q, k, v):\n    return softmax(q @ k.T, axis=-1) @ v\n"
OWN_TORCH = "class torch:\n    pass\n\n\ndef f(q, k, v):\n    return torch.softmax(q @ k.mT, dim=-1) @ v\n"
IN_CLASS = HEAD + "class A:\n    exec('1')\n    locals()['x'] = 1\n" + _indented(ATTENTION)
RECURSIVE = "def helper(s):\n    return helper(helper(s))\n\n\n" + HELPED
IMPORTS = b"import evil, einops, json, flashmore\nfrom . import evil\nfrom .. import evil\n"
KANJI = "    # \u8868\n".encode("shift_jis")  # its second byte is a backslash
ODD: dict[str, bytes] = {
    "nested_max": _attention("    n = q.size(-1)\n" + _many("n = max(n, n, n)", 300), "n"),
    "nested_max_inline": _attention(scale=_nested("max({0}, {0})", 14)),
    "conditional_biases": _attention(_many("s = s if b[{0}] is None else s + b[{0}]", 100)),
    "conditional_scales": _attention(_many("s = s * 2 if b[{0}] else s * 3", 100)),
    "conditional_statements": _attention(_many("if b[{0}]: s = s + b[{0}]", 200)),
    "conditional_views": _attention(_many("if b[{0}]: s = s.view(s.shape)", 100)),
    "squared_sizes": _attention("    n = q.size(-1)\n" + _many("n = n * n", 300) + "    s = s.view(n, n)\n"),
    "doubled_tuples": _attention("    t = (q, k)\n" + _many("t = t + t", 60)),
    "doubled_sums": _attention(_many("s = s + s", 300)),
    "calls_of_calls": (HEAD + _calls(30)).encode(),
    "recursive_helpers": (HEAD + RECURSIVE).encode(),
    "diamond_of_classes": (HEAD + _classes(200)).encode(),
    "alias_of_itself": (HEAD + "a = b\nb = a\n\n\n" + ATTENTION.replace("0.5", "a.b")).encode(),
    "huge_integer": _attention(scale="9" * 100_000),
    "huge_hexadecimal": _attention(scale="0x" + "f" * 500_000),
    "huge_float": _attention(scale="1" + "0" * 400 + ".0"),
    "huge_power": _attention(scale="9 ** 9 ** 9 ** 9"),
    "huge_shift": _attention(scale="(1 << 10 ** 12)"),
    "huge_string": _attention("    x = 'a' * 10 ** 12\n"),
    "huge_list": _attention("    x = [0] * 10 ** 12\n"),
    "huge_range": _attention("    for i in range(10 ** 18): s = s + i\n"),
    "huge_number_of_zeros": _attention("    s = s + torch.zeros(10 ** 12)\n"),
    "slow_loop": _attention("    for i in range(10 ** 9): s = s + i\n"),
    "slow_comprehension": _attention("    s = s + sum([i for i in range(10 ** 9)])\n"),
    "slow_power": _attention("    s = s + 7 ** 7 ** 12 % 2\n"),
    "slow_scale": _attention(scale="(7 ** 7 ** 12 % 2)"),
    "slow_tensor": _attention(_many("s = s + torch.ones(20000, 20000).mean()", 50)),
    "slow_einsum": _attention("    s = s + torch.einsum('abcd,efgh->abefcdgh', s, s).mean()\n"),
    "slow_places": _places("s = s + 7 ** 7 ** ({0} + 12) % 2"),
    "slow_sums": _places("s = s + sum([i for i in range(10 ** 9 + {0})])"),
    "places": _places("s = s * ({0} + 2)"),
    "flags": _attention(_many("s = s + {0} if b{0} else s * 2", 12)).replace(b"v):", FLAGS.encode()),
    "biases": _attention(_many("if b{0} is not None: s = s + b{0}", 12)).replace(b"v):", FLAGS.encode()),
    "endless_loop": _attention("    while True: s = s + 1\n"),
    "deep_parentheses": _attention(scale=_nested("({0})", 5000)),
    "deep_minus": _attention(scale="-" * 100_000 + "1"),
    "deep_not": _attention("    x = " + "not " * 5000 + "q\n"),
    "deep_attributes": _attention("    x = q" + ".a" * 50_000 + "\n"),
    "deep_calls": _attention("    x = q" + "()" * 50_000 + "\n"),
    "deep_lists": _attention("    x = " + "[" * 90 + "]" * 90 + "\n"),
    "deep_sum": _attention(scale="+".join(["1"] * 50_000)),
    "deep_power": _attention(scale="**".join(["1"] * 5000)),
    "deep_strings": _attention("    x = " + " ".join(["'a'"] * 100_000) + "\n"),
    "deep_f_string": _attention("    x = " + _nested("f'{{{0}}}'", 3, "q") + "\n"),
    "deep_ifs": _attention(DEEP_IFS),
    "deep_elifs": _attention("    if q: pass\n" + _many("elif q[{0}]: s = s + 1", 5000)),
    "deep_lambda": _attention("    x = " + "lambda: " * 3000 + "q\n"),
    "deep_functions": DEEP_FUNCTIONS.encode(),
    "deep_subscripts": _attention("    x = q" + "[0]" * 50_000 + "\n"),
    "one_long_line": _attention("    x = [" + "é, " * 260_000 + "]\n"),
    "many_names": _attention(_many("x{0} = q[{0}]", 20_000)),
    "many_functions": (HEAD + "".join(ATTENTION.replace("attend", f"f{n}") for n in range(2000))).encode(),
    "many_penalties": (HEAD + "gradient_penalty()\n" * 20_000 + ATTENTION).encode(),
    "many_flags": (HEAD + "f(create_graph=x)\n" * 20_000 + ATTENTION).encode(),
    "much_data": HEAD.encode() + b"x = [" + b"1," * 520_000 + b"]\n# softmax @\n",
    "many_statements": b"x=1\n" * 260_000 + b"# softmax @\n",
    "too_large": b"# softmax @\n" + b"#" * 20_000_000,
    "null_bytes": _attention("    x = '\0'\n"),
    "only_null_bytes": b"\0" * 1000 + b"softmax",
    "byte_order_mark": b"\xef\xbb\xbf" + _attention(),
    "two_byte_order_marks": b"\xef\xbb\xbf\xef\xbb\xbf" + _attention(),
    "mark_and_latin": b"\xef\xbb\xbf# coding: latin-1\n" + _attention(),
    "utf_16": (HEAD + ATTENTION).encode("utf-16"),
    "utf_16_named": b"# coding: utf-16\n" + _attention(),
    "utf_7": b"# coding: utf-7\n" + _attention("    # +AAo-__import__('os')\n"),
    "unicode_escape": b"# coding: unicode_escape\n" + _attention("    # \\n    __import__('os')\n"),
    "raw_unicode_escape": b"# coding: raw_unicode_escape\n" + _attention("    # \\u000a    x = 1\n"),
    "punycode": b"# coding: punycode\n# softmax @ -" + b"a" * 1_000_000,
    "idna": b"# coding: idna\n# softmax @ " + b"a." * 500_000,
    "rot13": b"# coding: rot13\n" + _attention(),
    "zlib": b"# coding: zlib\n" + _attention(),
    "hex": b"# coding: hex\n" + _attention(),
    "undefined": b"# coding: undefined\n" + _attention(),
    "a_module_as_encoding": b"# coding: hostile_codec\n" + _attention(),
    "path_as_encoding": b"# coding: ../../hostile_codec\n" + _attention(),
    "shift_jis": b"# coding: shift_jis\n" + _attention().replace(b"    w", KANJI + b"    w", 1),
    "latin_1": b"# coding: latin-1\n# \xe9\x9b\x85\n" + _attention(),
    "not_utf_8": b"# softmax @ \xff\xfe\n" + _attention(),
    "surrogates": b"# softmax @ \xed\xa0\x80\n" + _attention(),
    "form_feeds": _attention().replace(b"\ndef", b"\n\x0cdef").replace(b"    w =", b"\x0c    w ="),
    "carriage_returns": _attention().replace(b"\n", b"\r"),
    "mixed_line_ends": _attention().replace(b"\n    w", b"\r\n    w"),
    "vertical_tabs": _attention("    # \x0b\x1c\x1d\x1e\u2028\u2029\x85\n"),
    "tabs": _attention().replace(b"    ", b"\t"),
    "tabs_and_spaces": _attention().replace(b"    w", b"\tw"),
    "no_line_end": _attention().rstrip(b"\n"),
    "continued_at_the_end": _attention() + b"x = \\",
    "open_string": _attention() + b'"""',
    "semicolons": _attention().replace(b"\n    w", b"; w"),
    "stars": b"from torch import *\nfrom os import *\nfrom evil import *\n" + _attention(),
    "imports_evil": IMPORTS + _attention(),
    "future": b"from __future__ import braces\n" + _attention(),
    "numpy_alone": NUMPY.encode(),
    "own_tensors": b"class Tensor:\n    def softmax(self, d):\n        open('x')\n\n\n" + ATTENTION.encode(),
    "own_torch": OWN_TORCH.encode(),
    "dunder_all": b"__all__ = [*dir()]\n__path__ = ['/']\n__builtins__ = None\n" + _attention(),
    "type_comments": _attention("    x = q  # type: ignore[exec]\n"),
    "strange_names": _attention("    \u017f\u00aa = q\n    \U0001d52e = k\n"),
    "same_letters": (HEAD + ATTENTION).replace("softmax", "\u017foftmax").encode(),
    "only_marks": b"\xef\xbb\xbf",
    "empty": b"",
    "async": _attention("    await q\n").replace(b"def attend", b"async def attend"),
    "yielding": _attention("    yield q\n"),
    "exec_in_class": IN_CLASS.encode(),
}  # fmt: skip
"""Files that are odd in one way each."""

BESIDE = (
    "evil", "einops", "torch", "numpy", "json", "safetensors", "flashmore", "sitecustomize", "usercustomize",
    "hostile_codec", "conftest", "setup", "hubconf", "__init__", "__main__",
)  # fmt: skip
"""Modules that lie beside all others, and must not be imported."""
