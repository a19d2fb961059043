"""ADAPT: low-rank adapters on a frozen network, in PEFT's numbers and names."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
