"""Reduction: choosing the patches to keep, running a ViT on those alone, both in one module, and merging tokens."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
