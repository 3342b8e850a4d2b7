"""Whether a rewritten file compiles."""

import ast
import warnings

from flashmore.upgrade.axes import Refuse


def require_compilable(source: str) -> None:
    """Refuse what only the compiler objects to, such as a `global` statement that a guard has repeated."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # In a notebook, `await` may stand outside of functions.
            compile(source, "<rewritten>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError as error:
        raise Refuse(f"the rewritten file would not compile: {error.msg}") from None
