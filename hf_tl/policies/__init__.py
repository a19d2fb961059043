"""TRAIN: what is frozen, tuned and reinitialised, layer by layer and phase by phase."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
