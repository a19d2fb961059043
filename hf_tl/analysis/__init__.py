"""MEASURE: what did training change, and do two libraries load the same network from one adapter?"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
