"""hf_tl: transfer learning, layer by layer, for the Hugging Face stack.

The public names are in `__init__.pyi`. Each is imported when it is first used, so that `import hf_tl` costs nothing.
"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
