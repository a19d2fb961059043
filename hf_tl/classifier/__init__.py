"""USE: one saved classifier, however it was trained: it predicts, tells how sure it is, and is one folder."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
