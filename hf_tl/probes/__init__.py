"""EVALUATE: classifiers on embeddings, and what they tell about layers and numbers of samples."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
