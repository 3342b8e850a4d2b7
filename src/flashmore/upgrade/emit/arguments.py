"""Masks and biases as arguments of their own, and the statements that fall away with them."""

import ast

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import walk
from flashmore.upgrade.checks.output import changed_later
from flashmore.upgrade.emit.hiding import Keep, Step, from_caller, is_causal, keep, kinds, test
from flashmore.upgrade.emit.words import atom, fresh
from flashmore.upgrade.emit.writer import Emission
from flashmore.upgrade.emit.zeros import Zeros
from flashmore.upgrade.patterns.masks import FINITE
from flashmore.upgrade.patterns.products import MORE
from flashmore.upgrade.source.graph import Value, number
from flashmore.upgrade.source.nodes import children, operand
from flashmore.upgrade.source.operations import ARITHMETIC, COMPARISONS, SAME_SHAPE

_VECTORS = {"const", "arange", "linspace"}


class Arguments(Zeros):
    """Writes attentions whose masks are simply one after the other."""

    def _simple(self, found: list[Step]) -> Emission:
        scale = self.pieces.scale()
        q = self._query(scale)
        arguments: list[str] = []
        fills = [each for each in found if each.term.kind == "fill"]
        adds = [each for each in found if each.term.kind == "add"]
        if FINITE in kinds(fills) and len({self._size(each) for each in fills}) > 1:
            raise Refuse("finite fills of different sizes: rows that only both hide together would change")
        if (fills and adds) or len(adds) > 1:
            raise Refuse("masks are filled in and biases are added")
        if len(fills) == 1 and is_causal(self.found, fills[0]):
            arguments.append(f"is_causal={self._truth(fills[0])}")
            self.result.rule = "causal"
        elif fills:
            self._require_two_dimensions(fills)
            q, mask = self._hidden(fills, q)
            arguments.append(f"attn_mask={mask}")
            self.result.rule = "boolean-mask"
        elif adds:
            self._require_two_dimensions(adds)
            arguments.append(f"attn_mask={self._added(adds[0])}")
            self.result.rule = "additive-mask"
        else:
            self.result.rule = "plain"
        self._remove_chain()
        self._write_call(q, arguments, scale)
        self._check_needed()
        return self.result

    def _truth(self, step: Step) -> str:
        """Whether a mask applies, as SDPA takes it: a bool and nothing else."""
        when = test(step, self.pieces)
        if when is None or step.condition is None:
            return "True"
        match step.condition.node:
            case ast.UnaryOp(op=ast.Not()) | ast.Compare(ops=[ast.Is() | ast.IsNot()]):
                return when
        return f"bool({when})" if step.condition.holds else when

    def _size(self, step: Step) -> object:
        """What a fill writes."""
        fill = step.term.detail[1]
        assert isinstance(fill, Value)
        return fill.key if (known := number(fill)) is None else known

    def _require_two_dimensions(self, masks: list[Step]) -> None:
        """Refuse a mask that is a number or a vector, which broadcasts to scores, but is no `attn_mask`."""
        for step in masks:
            value = step.term.other
            assert value is not None
            rank = self.found.shapes.rank(value)
            while rank is None and value.args and value.op in SAME_SHAPE | COMPARISONS | ARITHMETIC:
                value = self._widest(value)
                rank = self.found.shapes.rank(value)
            if rank is None and value.op not in _VECTORS and (name := self._name_of_mask(value)):
                self.result.assumptions.append(
                    f"`{name}` is a tensor with at least two dimensions that broadcasts to the scores"
                )
            elif value.op in _VECTORS or (rank is not None and rank < 2):
                raise Refuse("a mask or bias has fewer than two dimensions")

    def _name_of_mask(self, value: Value) -> str:
        if value.op in ("param", "selfattr", "pop", "get"):
            given = value.args[1] if value.op in ("pop", "get") and len(value.args) > 1 else value
            return str(getattr(given.detail, "path", given.detail))
        return self.text.of(value.node) if isinstance(value.node, ast.expr) and not value.inner else ""

    def _widest(self, value: Value) -> Value:
        """The operand that decides the rank of a result: the one with most, or of unknown rank."""
        if value.op not in ARITHMETIC:
            return value.args[0]
        ranks = {each: self.found.shapes.rank(each) for each in value.args if number(each) is None}
        known = max((rank for rank in ranks.values() if rank is not None), default=0)
        wanted = known if known >= 2 else None
        return next((each for each, rank in ranks.items() if rank == wanted), value.args[0])

    def _check_needed(self) -> None:
        """What falls away must not make a name that the call reads."""
        made = {
            self.flow.after[each].get(target.id)
            for each in self.result.removed
            for target in getattr(each, "targets", [])
            if isinstance(target, ast.Name)
        }
        if any(self.flow.seen.get(name) in made for node in self.pieces.emitted for name in _names(node)):
            raise Refuse("one statement computes the scores and something else that is needed")

    def _hidden(self, fills: list[Step], q: str) -> tuple[str, str]:
        keeps = [keep(each, self.pieces) for each in fills]
        tests = [test(each, self.pieces) for each in fills]
        found = kinds(fills)
        if len(set(tests)) != 1:
            return self._several(list(zip(keeps, tests, strict=True)), found, q)
        when = tests[0]
        kept = keeps[0].text if len(keeps) == 1 else " & ".join(f"({each.text})" for each in keeps)
        if len(found) > 1:
            raise Refuse("some masks use -inf and some a finite number")
        value = fills[0].term.other
        assert value is not None
        if found == {FINITE} and not self.found.zeroed:
            return self._rows(kept, when, q, value)
        if not self.found.zeroed:
            self._rows_of_nan()
        kept = self._lifted_mask(kept, value)
        return q, kept if when is None else f"{kept} if {when} else None"

    def _several(self, masks: list[tuple[Keep, str | None]], found: set[str], q: str) -> tuple[str, str]:
        """Masks under different tests, one after the other into one."""
        if len(found) > 1 or (len(self.found.batch) == 1 and MORE not in self.found.batch):
            raise Refuse("the masks are applied under different conditions")
        mask, row, query = (fresh(each, self.taken) for each in ("keep", "some", "query"))
        always = [each.text for each, when in masks if when is None]
        start = always[0] if len(always) == 1 else " & ".join(f"({each})" for each in always)
        lines = [f"{mask} = {start or None}"]
        first = not always
        for each, when in masks:
            if when is not None:
                text = each.text if each.text.isidentifier() else f"({each.text})"
                joined = f"{mask} & {text}" if always else f"{text} if {mask} is None else {mask} & {text}"
                lines += [f"if {when}:", f"    {mask} = {each.text if first else joined}"]
                first = False
        if found == {FINITE}:
            rows = [
                f"{row} = {mask}.any(dim=-1, keepdim=True)  # fully masked rows get uniform weights",
                f"{query} = {atom(q)}.masked_fill(~{row}, 0)",
                f"{mask} = {mask} | ~{row}",
            ]
            lines += (
                rows if always else [f"{query} = {q}", f"if {mask} is not None:", *("    " + e for e in rows)]
            )
            q = query
        else:
            self._rows_of_nan()
        self.result.setup.append((self.pieces.at, lines))
        return q, mask

    def _lifted_mask(self, text: str, value: Value) -> str:
        """A mask of three dimensions, as wide as the lifted tensors: the kernels take two or four."""
        if self.found.shapes.rank(value) == 3 and len(self.found.batch) == 1 and MORE not in self.found.batch:
            return f"{atom(text)}.unsqueeze(0)"
        return text

    def _rows(self, kept: str, when: str | None, q: str, value: Value) -> tuple[str, str]:
        """A finite fill: a row that keeps no key attends to all keys alike, whatever q and k are."""
        mask, row, query = (fresh(each, self.taken) for each in ("keep", "some", "query"))
        lines = [
            f"{mask} = {kept}",
            f"{row} = {mask}.any(dim=-1, keepdim=True)  # fully masked rows get uniform weights",
            f"{query} = {atom(q)}.masked_fill(~{row}, 0)",
            f"{mask} = {self._lifted_mask(f'{mask} | ~{row}', value)}",
        ]
        if when is not None:
            lines = [f"{query}, {mask} = {q}, None", f"if {when}:", *("    " + each for each in lines)]
        self.result.setup.append((self.pieces.at, lines))
        return query, mask

    def _added(self, step: Step) -> str:
        term = step.term
        assert term.other is not None
        node = operand(self.flow, term.value.node, term.other)
        if node is None or not self.pieces.stability.holds(node, self.pieces.at, step.condition):
            raise Refuse("a bias changes before the values are multiplied")
        if (name := changed_later(self.flow, term.other)) is not None:
            raise Refuse(
                f"`{name}` is changed in place, and the gradients need it", "make a new tensor each time"
            )
        self.pieces.emitted.append(node)
        text = self.words.flat(node)
        if term.detail == ("-",):
            text = f"-{atom(text)}"
        when = test(step, self.pieces)
        clamped = self._lifted_mask(self.clamped(text, term.other), term.other)
        if from_caller(term.other):
            self.adds_a_callers()
        if when is None:
            return clamped
        return f"{clamped} if {when} else None"

    def _remove_chain(self) -> None:
        chain = self.found.chain
        gone: set[ast.stmt] = set()
        for value in chain:
            statement = value.statement
            if (
                (value.node is None and not value.inner)
                or statement is self.pieces.at
                or value.op in ("phi", "loop", "carried")
            ):
                continue
            if statement is None or not self._is_all_chain(statement, chain):
                raise Refuse("a statement that changes the scores also does something else")
            gone.add(statement)
        self._remove_needed(chain, gone)
        self.result.removed = gone
        if self.donors:
            self._keep_as_donor(gone)

    def _keep_as_donor(self, gone: set[ast.stmt]) -> None:
        """The scores' name stays, as zeros of their shape and dtype, where only these are asked for."""
        statement = self.found.product.value.statement
        target = statement.targets[0] if isinstance(statement, ast.Assign) else None
        names = {each.id for each in self.donors}
        made = {term.kind for term in (*self.found.scores.walk(), *self.found.weights.walk())
                if term.value.statement is statement}  # fmt: skip
        if (
            not isinstance(target, ast.Name)
            or names != {target.id}
            or not made <= {"product", "scale", "cast"}
        ):
            raise Refuse("the shape or dtype of the scores is used elsewhere")
        if statement is not None:
            gone.discard(statement)
        self._zero_product()

    def _is_all_chain(self, statement: ast.stmt, chain: set[Value]) -> bool:
        match statement:
            case ast.Assign(targets=targets, value=value) if all(
                isinstance(name, ast.Name) for each in targets for name in getattr(each, "elts", [each])
            ):
                return self.flow.seen.get(value) in chain
            case ast.AnnAssign(target=ast.Name(), value=ast.expr() as value):
                return self.flow.seen.get(value) in chain
            case ast.Assign(targets=[ast.Subscript() as item]):
                return any(each.node is item for each in chain)
            case ast.AugAssign(target=ast.Name()):
                return True
            case ast.Expr(value=value):
                return self.flow.seen.get(value) in chain
        return False

    def _remove_needed(self, chain: set[Value], gone: set[ast.stmt]) -> None:
        """What only asked the scores for their shape or dtype goes too, if nothing else needs it."""
        for value in chain:
            for user in value.users:
                if user in chain or user is self.found.final or user.inner:
                    continue
                statement = user.statement
                if (
                    statement is None
                    or statement in gone
                    or statement is self.pieces.at
                    or user.op in ("phi", "tuple")
                ):
                    continue
                around = (each for each in self.blocks.ancestors(statement) if isinstance(each, ast.If))
                if any(self.found.live(each) is not None for each in around):
                    continue
                if self._only_needed_by(statement, gone):
                    gone.add(statement)
                    continue
                asked = children(user.node)[:1] if user.node is not None else []
                if not asked or not isinstance(asked[0], ast.Name):
                    raise Refuse("the shape or dtype of the scores is used elsewhere")
                self.donors.append(asked[0])

    def _only_needed_by(self, statement: ast.stmt, gone: set[ast.stmt]) -> bool:
        match statement:
            case ast.Assign(targets=[ast.Name()], value=value):
                made = self.flow.seen.get(value)
                read = (name for node in self.pieces.emitted for name in _names(node))
                if made is None or any(self.flow.seen.get(name) is made for name in read):
                    return False
                return all(user.statement in gone for user in made.users)
        return False


def _names(node: ast.expr) -> list[ast.Name]:
    return [each for each in walk(node) if isinstance(each, ast.Name)]
