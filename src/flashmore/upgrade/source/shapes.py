"""Shapes as far as the source tells them: one text a dimension, equal texts for equal sizes."""

from collections.abc import Sequence

from flashmore.upgrade.budget import step
from flashmore.upgrade.patterns.scales import NUMBER, classify
from flashmore.upgrade.source.attributes import Attribute, rank_of
from flashmore.upgrade.source.graph import Value, number
from flashmore.upgrade.source.moved_shapes import MOVED
from flashmore.upgrade.source.operations import ARITHMETIC, COMPARISONS, MOVES, SAME_SHAPE
from flashmore.upgrade.source.sizes import Dims, broadcast, integers, pattern_axes, product, quotient
from flashmore.upgrade.source.state import State

_LONGEST_SIZE = 1000
_MADE = {"new_ones", "new_zeros", "ones", "zeros"}
"""Tensors that are made of the sizes that are given, one by one or as a tuple."""
_RANKS = {"mm": 2, "bmm": 3}
_RANK_OF_CONV = {"layer:Conv1d": 3, "layer:Conv2d": 4, "layer:Conv3d": 5}


class Shapes:
    """The shapes of a function's values."""

    def __init__(self, state: State) -> None:
        self.module = state.module
        self.known: dict[Value, Dims | None] = {}
        self.texts: dict[Value, str] = {}
        self.ranks = dict(state.ranks)
        self.sized = dict(state.sized)
        self.positions: set[str] = set()
        """Sizes that are surely numbers of positions: a linear layer left them in the middle."""
        for value in state.values:
            self._learn(value)

    def _learn(self, value: Value) -> None:
        """What an operation says about its argument."""
        if value.op in ("permute", "attr:permute") and value.args[1:] and (order := integers(value.args[1:])):
            self.ranks.setdefault(value.args[0], len(order))
        if value.op in _RANKS and len(value.args) >= 2:
            for each in (value, *value.args[:2]):
                self.ranks.setdefault(each, _RANKS[value.op])
                always = all(any(map(one.same, each.conditions)) for one in value.conditions)
                for branch in each.args if each.op == "phi" and always else ():
                    self.ranks.setdefault(branch, _RANKS[value.op])
        if value.op in ("attr:T", "t"):
            self.ranks.setdefault(value.args[0], 2)
        if value.op == "einsum":
            self._learn_equation(value)
        if value.op == "transpose" and {2, 3} == set(integers(value.args[1:]) or ()):
            self.ranks.setdefault(value.args[0], 4)  # more dimensions would not be transposed from the front
        if value.op in ("rearrange", "einops.repeat") and len(value.args) > 1:
            pattern = value.args[1].detail
            if isinstance(pattern, str) and "->" in pattern and "..." not in pattern.split("->")[0]:
                self.ranks.setdefault(value.args[0], len(pattern_axes(pattern.split("->")[0])))

    def _learn_equation(self, value: Value) -> None:
        """An equation without dots says how many dimensions its operands and its result have."""
        operands = value.args[1:]
        if len(operands) == 1 and operands[0].op == "tuple":
            operands = operands[0].args
        text = value.args[0].detail if value.args else None
        if not isinstance(text, str) or "->" not in text or "." in text:
            return
        left, out = text.replace(" ", "").split("->")
        for side, operand in zip(left.split(","), operands, strict=False):
            self.ranks.setdefault(operand, len(side))
        self.ranks.setdefault(value, len(out))

    def learn(self, value: Value, rank: int) -> None:
        """Takes note of a tensor's rank."""
        self.ranks[value] = rank
        self.known.clear()
        self.texts.clear()

    def of_same_rank(self, value: Value) -> list[Value]:
        """A tensor and those that it is made of by operations which keep the number of dimensions."""
        found = [value]
        while (value := found[-1]).args and value not in self.ranks:
            tensors = [each for each in value.args if classify(each, self.module) != NUMBER]
            alone = value.op in ARITHMETIC and len(tensors) == 1
            if not (alone or value.op in SAME_SHAPE | MOVES | {"layer:Linear", "linear"}):
                break
            found.append(tensors[0] if alone else value.args[0])
        return found

    def rank(self, value: Value) -> int | None:
        """How many dimensions a tensor has."""
        dims = self.of(value)
        return len(dims) if dims is not None else self.ranks.get(value)

    def of(self, value: Value) -> Dims | None:
        """The dimensions of a tensor, None where even their number is unknown."""
        step()
        if value not in self.known:
            self.known[value] = None  # for what is defined by itself, round a loop
            dims = self.sizes(self.sized[value]) if value in self.sized else self._dims(value)
            if value.op == "selfattr" and value not in self.ranks and isinstance(value.detail, Attribute):
                stored = rank_of(value.detail, self.module)
                self.ranks.update({} if stored is None else {value: stored})
            rank = self.ranks.get(value)
            if dims is None and rank is not None:
                dims = [self._unknown(value, index, rank) for index in range(rank)]
            self.known[value] = dims
        return self.known[value]

    def size(self, value: Value) -> str:
        """The text of a size."""
        if value not in self.texts:
            text = self._text(value)
            self.texts[value] = text if len(text) <= _LONGEST_SIZE else value.key
        return self.texts[value]

    def _text(self, value: Value) -> str:
        step()
        if value.op == "const":
            return str(value.detail)
        base, index = self.size_of(value)
        if base is not None and index is not None:
            dims = self.of(base)
            if dims is not None and -len(dims) <= index < len(dims):
                return dims[index]
            return f"{base.key}#{index}"
        if value.op in ("mul", "floordiv") and len(value.args) == 2:
            one, two = (self.size(each) for each in value.args)
            return product([one, two]) if value.op == "mul" else quotient(one, two)
        if value.op in ("py:int", "int") and value.args:
            return self.size(value.args[0])
        return value.key

    def sizes(self, value: Value) -> Dims | None:
        """The sizes that a tuple holds: a shape, a part of one, sums of both."""
        if value.op == "tuple":
            return self.listed(value.args)
        if value.op in ("attr:shape", "size") and len(value.args) == 1:
            return self.of(value.args[0])
        if value.op == "index" and value.args[1].op == "slice":
            whole = self.sizes(value.args[0])
            parts = [number(each) for each in value.args[1].args]
            cut = slice(*(each if isinstance(each, int) else None for each in parts))
            return whole[cut] if whole is not None and float not in map(type, parts) else None
        if value.op == "add" and len(value.args) == 2:
            one, two = (self.sizes(each) for each in value.args)
            return [*one, *two] if one is not None and two is not None else None
        if value.op in ("tuple_of", "py:tuple", "py:list") and value.args:
            return self.sizes(value.args[0])
        return None

    def listed(self, values: Sequence[Value]) -> Dims | None:
        """The sizes of a list, of which any may be a shape with a star."""
        parts = [
            self.sizes(each.args[0])
            if each.op == "star"
            else ["-1" if number(each) == -1 else self.size(each)]
            for each in values
        ]
        return None if None in parts else [size for part in parts if part is not None for size in part]

    def size_of(self, value: Value) -> tuple[Value | None, int | None]:
        """The tensor and the dimension that a size is taken from."""
        if value.op == "py:len" and value.args:
            return value.args[0], 0
        if value.op == "size" and len(value.args) == 2:
            index = number(value.args[1])
            return value.args[0], index if isinstance(index, int) else None
        if value.op in ("item", "index") and value.args[0].op in ("attr:shape", "size"):
            at = value.detail if value.op == "item" else number(value.args[1])
            shape = value.args[0]
            if len(shape.args) == 1:
                return shape.args[0], at if isinstance(at, int) else None
        return None, None

    def _dims(self, value: Value) -> Dims | None:
        op, args = value.op, value.args
        if op in _MADE:
            given = args[1:] if op.startswith("new_") else args
            if len(given) == 1 and number(given[0]) is None:
                return self.sizes(given[0])
            return None if any(each.op == "star" for each in given) else [self.size(each) for each in given]
        if op == "masked_fill" and len(args) > 1:
            return broadcast([self.of(each) for each in args[:2]], value.key)
        if op in SAME_SHAPE and args:
            return self.of(args[0])
        if op in ARITHMETIC | COMPARISONS:
            tensors = [each for each in args if classify(each, self.module) != NUMBER]
            return broadcast([self.of(each) for each in tensors], value.key)
        if op in ("phi", "loop"):
            return self._merged([self.of(each) for each in args if each.op != "missing"], value)
        if op == "carried":
            return broadcast([self.of(args[0]), None], value.key)
        if op in ("layer:Linear", "linear", "layer:Embedding") and args:
            dims = self.of(args[0])
            own = [f"features:{value.key}"]
            self.positions.update(dims[1:-1] if dims is not None and op != "layer:Embedding" else [])
            return None if dims is None else (dims if op == "layer:Embedding" else dims[:-1]) + own
        if op in _RANK_OF_CONV:
            dims = self.of(args[0]) if args else None
            first = [dims[0]] if dims else [f"{value.key}#0"]
            rest = [f"positions:{args[0].key if args else ''}#{i}" for i in range(2, _RANK_OF_CONV[op])]
            return [*first, f"features:{value.key}", *rest]
        return MOVED[op](self, value) if op in MOVED and args else None

    def _unknown(self, value: Value, index: int, rank: int) -> str:
        """The name of a dimension that nothing is known of: that of the tensor which it comes from."""
        linear = False
        while value.args:
            whole = value.args[0]
            if value.op in SAME_SHAPE:
                value = whole
            elif value.op in ("layer:Linear", "linear") and index != rank - 1:
                value, linear = whole, linear or index > 0
            elif value.op == "item" and whole.op in ("chunk", "split", "tensor_split") and whole.args:
                at = number(whole.get(2, "dim"))
                if not isinstance(at, int) or at % rank == index:
                    break
                value = whole.args[0]
            else:
                break
        name = f"{value.key}#{index}"
        if linear:
            self.positions.add(name)
        return name

    def _merged(self, shapes: list[Dims | None], value: Value) -> Dims | None:
        known = [each for each in shapes if each is not None]
        if not known or any(len(each) != len(known[0]) for each in known):
            return None
        names = [set(sizes) for sizes in zip(*known, strict=True)]
        if len(known) < len(shapes):
            return [f"{value.key}#{index}" for index in range(len(names))]
        return [each.pop() if len(each) == 1 else f"{value.key}#{index}" for index, each in enumerate(names)]
