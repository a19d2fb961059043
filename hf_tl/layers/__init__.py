"""The depth-ordered layers of any network, and a language to select them."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
