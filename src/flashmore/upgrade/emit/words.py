"""Python text for the pieces of a call: conditions, axes in another order, numbers, fresh names."""

import ast
from collections.abc import Iterable

from flashmore.upgrade.axes import Letters, Refuse
from flashmore.upgrade.patterns.products import MORE
from flashmore.upgrade.source.graph import Condition
from flashmore.upgrade.text import Text


class Words:
    """The text of expressions, some of them replaced.

    Args:
        text: the source.
        names: what stands for an expression instead of the user's own text.
    """

    def __init__(self, text: Text, names: dict[ast.AST, str] | None = None) -> None:
        self.text = text
        self.names = names or {}

    def of(self, node: ast.AST) -> str:
        """The text of an expression."""
        start, end = self.text.span(node)
        return self.between(start, end)

    def between(self, start: int, end: int) -> str:
        """The text of a span, with what is replaced in it."""
        result, at = [], start
        for first, last, name in self.replaced(start, end):
            result += [self.text.source[at:first], name]
            at = last
        return "".join([*result, self.text.source[at:end]])

    def replaced(self, start: int, end: int) -> list[tuple[int, int, str]]:
        """The outermost replacements inside a span, in order."""
        found = sorted(
            ((*self.text.span(node), name) for node, name in self.names.items()), key=lambda e: (e[0], -e[1])
        )
        result: list[tuple[int, int, str]] = []
        for first, last, name in found:
            if start <= first and last <= end and (not result or first >= result[-1][1]):
                result.append((first, last, name))
        return result

    def flat(self, node: ast.AST) -> str:
        """The text in one line, where that changes nothing."""
        found = self.of(node)
        if "\n" not in found and "\r" not in found:
            return found
        try:
            return ast.unparse(ast.parse(f"({found})", mode="eval"))
        except (SyntaxError, ValueError):
            return found

    def condition(self, condition: Condition) -> str:
        """A condition as Python."""
        if condition.node is None:
            raise Refuse(
                "the attention depends on a condition inside a helper",
                "move the condition into this function",
            )
        if condition.node in self.names:
            return self.names[condition.node] if condition.holds else f"not {self.names[condition.node]}"
        return positive(self.flat(condition.node), condition.node, condition.holds)


def positive(text: str, node: ast.expr, holds: bool) -> str:
    """A test, or its negation, as one would write it."""
    match node:
        case ast.Compare(left=left, ops=[ast.Is() | ast.IsNot() as operator], comparators=[other]) if (
            not holds
        ):
            word = "is not" if isinstance(operator, ast.Is) else "is"
            return f"{ast.unparse(left)} {word} {ast.unparse(other)}"
    if holds:
        return text
    return f"not {text}" if is_atom(node) else f"not ({text})"


def is_atom(node: ast.AST) -> bool:
    """Whether an expression binds tighter than any operator."""
    return isinstance(node, (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant))


def atom(text: str) -> str:
    """A text in parentheses, if it needs them before a dot or an index."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return f"({text})"
    return text if is_atom(node) and not isinstance(node, ast.Constant) else f"({text})"


def factor(text: str) -> str:
    """A text in parentheses, if it needs them beside `*` or `/`."""
    node = ast.parse(text.strip(), mode="eval").body
    tight = is_atom(node) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow))
    return text if tight else f"({text})"


def conjunct(text: str) -> str:
    """A text in parentheses, if it needs them beside `and`."""
    node = ast.parse(text.strip(), mode="eval").body
    loose = isinstance(node, (ast.IfExp, ast.Lambda, ast.NamedExpr)) or (
        isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or)
    )
    return f"({text})" if loose else text


def reordered(text: str, letters: Letters, target: Letters) -> str:
    """A tensor's text with its axes in another order; axes that it lacks have length 1."""
    if letters == target:
        return text
    present = tuple(each for each in target if each in letters)
    if set(present) != set(letters):
        raise Refuse("one tensor has an axis that no other tensor has")
    if present != letters:
        text = _permuted(atom(text), letters, present)
    if present != target:
        if MORE in present:
            raise Refuse(
                "it is unclear how many dimensions the tensors have, and one has fewer than the others"
            )
        index = ", ".join(":" if each in present else "None" for each in _trimmed(target, present))
        text = f"{atom(text)}[{index}]"
    return text


def _permuted_from_the_end(text: str, letters: Letters, target: Letters) -> str:
    """One axis moved, where only the last axes are known."""
    if letters[0] != MORE or target[0] != MORE:
        raise Refuse("the order of dimensions is unusual, and it is unclear how many the tensors have")
    for start in range(1, len(letters)):
        for end in range(1, len(letters)):
            moved = [*letters[:start], *letters[start + 1 :]]
            moved.insert(end, letters[start])
            if tuple(moved) == target:
                return f"{text}.movedim({start - len(letters)}, {end - len(letters)})"
    raise Refuse("the order of dimensions is unusual, and it is unclear how many the tensors have")


def _trimmed(target: Letters, present: Letters) -> Letters:
    last = max(index for index, each in enumerate(target) if each not in present)
    return target[: last + 1]


def _permuted(text: str, letters: Letters, target: Letters) -> str:
    if letters[:-2] == target[:-2]:
        return f"{text}.transpose(-2, -1)"
    if MORE in letters:
        return _permuted_from_the_end(text, letters, target)
    order = [letters.index(each) for each in target]
    moved = [index for index, each in enumerate(order) if index != each]
    if len(moved) == 2:
        return f"{text}.transpose({moved[0]}, {moved[1]})"
    return f"{text}.permute({', '.join(map(str, order))})"


def fresh(wanted: str, taken: Iterable[str]) -> str:
    """A name that is not taken."""
    names = set(taken)
    name = wanted
    while name in names:
        name += "_"
    return name


def call(function: str, arguments: list[str], indent: str, width: int) -> str:
    """A call in one line, or with its arguments in a line of their own."""
    flat = f"{function}({', '.join(arguments)})"
    if width + len(flat) <= 110:
        return flat
    inner = f"\n{indent}    "
    line = ", ".join(arguments)
    if len(line) + len(indent) + 4 <= 110:
        return f"{function}({inner}{line}\n{indent})"
    return f"{function}({inner}{(',' + inner).join(arguments)},\n{indent})"
