"""Targets made tolerant: a few numbers tuned, without labels, to say of reduced images what is said of whole ones."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
