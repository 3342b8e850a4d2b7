"""flashmore: small character models, as fast as PyTorch's documentation allows.

The public names are those of `__init__.pyi`. They are loaded on first use, so that `import flashmore` does
not import torch (https://scientific-python.org/specs/spec-0001/).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
