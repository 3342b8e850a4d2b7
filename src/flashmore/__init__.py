"""flashmore: small character models at the speed that PyTorch's own documentation makes possible.

The public names are those of `__init__.pyi`. They are loaded when they are first used, so that
`import flashmore` imports no torch (https://scientific-python.org/specs/spec-0001/).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
