"""What the extracted lines may consist of: arithmetic and tensor operations, nothing that reaches outside.

The lines come from a file that nobody has vouched for, so they are read before they are run: only these
statements, only these names, only these methods. They store to names of their own and to items of tensors
that have one, and to nothing else; methods that change their object are called on such names and on what the
lines have just computed. What is left can compute too long or ask for too much memory; the process that runs
it has limits of both.
"""

import ast
from collections.abc import Sequence, Set
from types import CodeType

from flashmore.upgrade.site import Fragment
from flashmore.upgrade.source.scopes import claimed_by, dotted

EXPRESSIONS = (
    ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.keyword,
    ast.Subscript, ast.Slice, ast.Tuple, ast.List, ast.Starred, ast.ListComp, ast.GeneratorExp, ast.Lambda,
    ast.arguments, ast.arg, ast.Load, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
"""Expressions whose parts are read one by one. None of them stores: `ast.Store` is not on the list."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


BUILTINS = _words(
    "float int bool range len min max abs sum tuple list zip enumerate map reversed slice round pow"
)
AT_HAND = BUILTINS | {"getattr", "__import__"}
"""The builtins that exist while the lines run: torch's C++ imports with those of its caller.
The lines cannot name `__import__`, and `getattr` in one form alone."""
MODULES = frozenset(("torch", "F", "nn", "math", "np", "einops"))
"""Names that only ever appear at the head of a dotted name of `DOTTED`."""
OF_EINOPS = _words("rearrange repeat reduce einsum pack unpack")
BARE = OF_EINOPS | {"trained"}
"""What `from einops import …` and `from torch import einsum` bring; a fragment may use them as they are.
`trained` is ours (`steps`)."""

_FUNCTIONS = _words("""
    softmax dropout matmul bmm baddbmm einsum where masked_fill cat stack split chunk unbind
    transpose permute reshape flatten squeeze unsqueeze movedim swapaxes tril triu tril_indices
    triu_indices arange zeros ones full empty zeros_like ones_like full_like eye linspace finfo
    iinfo sqrt rsqrt exp log log2 pow abs neg sign add sub mul div true_divide multiply divide
    addcmul clamp clip minimum maximum max min amax amin sum mean square logical_not logical_and
    logical_or logical_xor eq ne lt le gt ge isfinite isinf isnan nan_to_num cumsum outer dot mm
    mv addmm broadcast_to broadcast_tensors repeat_interleave roll index_select gather tensor
    scalar_tensor is_tensor is_floating_point sigmoid tanh relu norm narrow select flip numel
    logsumexp tensordot diagonal diag meshgrid any all erf erfc var std var_mean std_mean reciprocal
    log_softmax subtract negative rsub
""")
_TYPES = _words("""
    float float16 float32 float64 double half bfloat16 bool int int8 int16 int32 int64 long uint8 inf pi nan
    strided contiguous_format preserve_format device Tensor
""")
_FUNCTIONAL = _words("""
    softmax dropout scaled_dot_product_attention normalize pad linear relu gelu silu sigmoid tanh softplus
    layer_norm rms_norm one_hot log_softmax unfold nll_loss cross_entropy
""")
_METHODS = _words("""
    T mT H t shape ndim dtype device is_cuda requires_grad size dim numel stride view view_as
    reshape reshape_as expand expand_as contiguous clone type type_as to float double half
    bfloat16 bool int long transpose_ masked_fill_ mul_ div_ add_ sub_ pow_ copy_ fill_ clamp_
    clamp_min clamp_max neg_ exp_ sqrt_ unsqueeze_ squeeze_ softmax repeat tile unflatten
    masked_scatter new_zeros new_ones new_full new_empty new_tensor fill_diagonal_ item detach
    index_fill swapdims adjoint unfold is_contiguous logical_not_ bitwise_not tril_ triu_ zero_
    data p training min max eps tiny smallest_normal append values
""")

DOTTED = frozenset(
    [f"torch.{name}" for name in (*_FUNCTIONS, *_TYPES)]
    + [f"{home}.{name}" for home in ("F", "nn.functional", "torch.nn.functional") for name in _FUNCTIONAL]
    + [f"{home}.{name}" for home in ("nn", "torch.nn") for name in ("Softmax", "Dropout", "Identity")]
    + [f"math.{name}" for name in _words("sqrt inf exp log log2 pi pow floor ceil isqrt")]
    + [f"np.{name}" for name in _words("sqrt inf exp log power pi e")]
    + [f"einops.{name}" for name in OF_EINOPS]
    + [f"torch.optim.{name}" for name in ("Adam", "AdamW", "SGD")]
    + [f"torch.{name}" for name in ("is_autocast_enabled", "get_autocast_dtype")]
)
CONTEXTS = frozenset(
    f"torch.{name}" for name in ("autocast", "amp.autocast", "cuda.amp.autocast", "no_grad", "enable_grad")
)
"""What `with` may enter; each leaves the process as it was."""
ATTRIBUTES = _METHODS | _FUNCTIONS
CHANGING = frozenset(name for name in ATTRIBUTES if name.endswith("_")) | {"append"}
"""Methods that change their object."""


class NotAllowed(Exception):
    """The extracted lines hold something that a test does not run; the message says what."""


def compiled(fragment: Fragment) -> tuple[CodeType, CodeType]:
    """Check both functions of a fragment and compile them.

    Returns:
        The code of two modules, which define `old` and `new`.

    Raises:
        NotAllowed: either is not one plain function of the inputs made of allowed operations.
    """
    inputs = [given.name for given in fragment.inputs]
    try:
        return _compiled(fragment.old, "old", inputs), _compiled(fragment.new, "new", inputs)
    except RecursionError:
        raise NotAllowed("the extracted lines are nested too deeply") from None


def _compiled(source: str, name: str, inputs: list[str]) -> CodeType:
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError, MemoryError) as error:
        raise NotAllowed(f"the extracted lines do not parse: {error}") from None
    match module.body:
        case [ast.FunctionDef(decorator_list=[], returns=None, args=arguments) as function] if (
            function.name == name and not any(argument.annotation for argument in arguments.args)
        ):
            pass
        case _:
            raise NotAllowed(f"the extracted lines are not one plain function '{name}'")
    if [argument.arg for argument in arguments.args] != inputs or _more_than_names(arguments):
        raise NotAllowed(f"'{name}' does not take the inputs {', '.join(inputs)}")
    _Reader(_bound(function)).statements(function.body)
    if not any(isinstance(node, ast.Return) and node.value is not None for node in ast.walk(function)):
        raise NotAllowed(f"'{name}' returns nothing")
    return compile(module, f"<{name}>", "exec")


def _more_than_names(given: ast.arguments) -> bool:
    return bool(given.posonlyargs or given.kwonlyargs or given.vararg or given.kwarg or given.defaults)


def _bound(function: ast.FunctionDef) -> set[str]:
    """Every name that is an input, a helper's, or is assigned to."""
    return {name for node in ast.walk(function) for name in claimed_by(node)} - {function.name}


class _Reader:
    """Refuses the first thing that is not on the lists.

    Args:
        own: the names that the lines are given or store to.
    """

    def __init__(self, own: Set[str]) -> None:
        self.own = own

    def statements(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            self.statement(statement)

    def statement(self, statement: ast.stmt) -> None:
        match statement:
            case ast.Pass():
                pass
            case ast.Expr(value=value) | ast.Return(value=ast.expr() as value):
                self.expression(value)
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self.stores(target)
                self.expression(value)
            case ast.AugAssign(target=target, value=value):
                self.stores(target)
                self.expression(value)
            case ast.If(test=test, body=body, orelse=otherwise):
                self.expression(test)
                self.statements([*body, *otherwise])
            case ast.For(target=target, iter=source, body=body, orelse=otherwise):
                self.stores_names(target)
                self.expression(source)
                self.statements([*body, *otherwise])
            case ast.With(items=items, body=body):
                for item in items:
                    self.enters(item)
                self.statements(body)
            case ast.FunctionDef(decorator_list=[], returns=None, args=arguments, body=body):
                self.expression(arguments)
                self.statements(body)
            case ast.Assert(test=test, msg=None | ast.Constant()):
                self.expression(test)
            case _:
                raise NotAllowed(f"{type(statement).__name__} is not supported in a test: {_text(statement)}")

    def stores(self, target: ast.expr) -> None:
        """A name, an item of what a name means, or several of both."""
        if isinstance(target, ast.Subscript) and self._is_item_of_own(target.value):
            self.expression(target.slice)
        elif isinstance(target, (ast.Tuple, ast.List)):
            for each in target.elts:
                self.stores(each)
        elif isinstance(target, ast.Starred):
            self.stores(target.value)
        else:
            self.stores_names(target)

    def stores_names(self, target: ast.expr) -> None:
        """A name, or several: what a loop and a comprehension may store to."""
        match target:
            case ast.Name(id=name):
                self._check_name(name)
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                for each in elements:
                    self.stores_names(each)
            case ast.Starred(value=value):
                self.stores_names(value)
            case _:
                raise NotAllowed(f"it stores to something other than a local name: {_text(target)}")

    def _is_item_of_own(self, node: ast.expr) -> bool:
        while isinstance(node, ast.Subscript):
            self.expression(node.slice)
            node = node.value
        return isinstance(node, ast.Name) and node.id in self.own

    def enters(self, item: ast.withitem) -> None:
        """A context of `CONTEXTS`, which is given no name."""
        match item:
            case ast.withitem(context_expr=ast.Call(func=func) as call, optional_vars=None) if (
                dotted(func) in CONTEXTS
            ):
                for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
                    self.expression(argument)
            case _:
                raise NotAllowed(f"with is not supported in a test for {_text(item.context_expr)}")

    def expression(self, node: ast.AST) -> None:
        """An expression of `EXPRESSIONS`, whose parts are read in turn."""
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                self._check_name(name)
                return
            case ast.Attribute(ctx=ast.Load()):
                self._attribute(node)
                return
            case ast.comprehension(target=target, is_async=0):
                self.stores_names(target)
                for each in (node.iter, *node.ifs):
                    self.expression(each)
                return
        if not isinstance(node, EXPRESSIONS):
            raise NotAllowed(f"{type(node).__name__} is not supported in a test: {_text(node)}")
        if not _asks_a_module(node):
            for child in ast.iter_child_nodes(node):
                self.expression(child)

    def _attribute(self, node: ast.Attribute) -> None:
        name = dotted(node)
        if name.partition(".")[0] in MODULES:
            if name not in DOTTED and not _is_value_of_dotted(name):
                raise NotAllowed(f"{name} is not on the list of tensor operations")
            return
        if node.attr not in ATTRIBUTES:
            raise NotAllowed(f".{node.attr} is not on the list of tensor operations")
        if node.attr in CHANGING and not self._is_own(node.value):
            raise NotAllowed(f".{node.attr} changes a tensor that the lines did not create: {_text(node)}")
        self.expression(node.value)

    def _is_own(self, node: ast.expr) -> bool:
        """Whether it starts from a name of the lines' own, or from what they compute there and then."""
        while isinstance(node, (ast.Attribute, ast.Subscript)):
            node = node.value
        own = isinstance(node, (ast.Call, ast.BinOp, ast.UnaryOp))
        return node.id in self.own if isinstance(node, ast.Name) else own

    def _check_name(self, name: str) -> None:
        if name in MODULES:
            raise NotAllowed(f"'{name}' stands alone or is assigned to")
        if name not in self.own | BUILTINS | BARE or name.startswith("__") or name == "getattr":
            raise NotAllowed(f"the name {name} is neither an input nor on the list")


def _asks_a_module(node: ast.AST) -> bool:
    """`getattr(drop, "p", 0.0)`: a module that is no dropout has none."""
    match node:
        case ast.Call(
            func=ast.Name(id="getattr"),
            args=[ast.Name(id=head), ast.Constant(value="p" | "training"), ast.Constant()],
            keywords=[],
        ):
            return head not in MODULES
    return False


def _is_value_of_dotted(name: str) -> bool:
    """`torch.float32.is_floating_point`-like tails: an allowed name and an attribute that is only read."""
    of, _, attribute = name.rpartition(".")
    return of in DOTTED and attribute in ATTRIBUTES - CHANGING


def _text(node: ast.AST) -> str:
    try:
        return ast.unparse(node).partition("\n")[0][:80]
    except (ValueError, RecursionError, AttributeError):
        return type(node).__name__
