"""MEASURE: is the data sound, how near is the source, which network, what did it cost, what did training change?"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
