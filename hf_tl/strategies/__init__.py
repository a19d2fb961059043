"""DECIDE: strategies of transfer on the user's own data, compared at equal budgets, and advice with its evidence."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
