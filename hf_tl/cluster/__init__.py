"""SCALE: reading and comparing beyond one machine, on a Ray cluster, which schedules, retries and moves the data."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
