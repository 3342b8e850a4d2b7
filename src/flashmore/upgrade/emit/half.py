"""The guard against float16, whose lowest number does not hide in the kernels what it hides by hand.

By hand the scores of a row whose keys are all hidden vanish beside the lowest number of a dtype, so that its
keys count alike. The kernels add in float32, where the scores still count beside -65504, the lowest number of
float16. So the fused lines do not run in float16 where a caller gives what is added.
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass

from flashmore.upgrade.axes import Refuse


@dataclass(frozen=True)
class Half:
    """What the guard asks.

    Args:
        torch: the name of torch.
        operands: q, k and v, where they are names, and their texts.
    """

    torch: str
    operands: list[tuple[ast.expr, str]]

    def guard(self, holds: Callable[[ast.expr], bool]) -> str:
        """The test under which the fused lines may run.

        Args:
            holds: whether an expression can be read where the guard stands.

        Raises:
            Refuse: no operand has a name there.
        """
        name = next((text for node, text in self.operands if holds(node)), None)
        if name is None:
            raise Refuse(
                "a mask may contain the lowest float16 number, and no named tensor has the dtype",
                "assign queries and keys to names",
            )
        half, device = f"{self.torch}.float16", f"{name}.device.type"
        return (
            f"{name}.dtype != {half} and not ({self.torch}.is_autocast_enabled({device}) "
            f"and {self.torch}.get_autocast_dtype({device}) == {half})"
        )
