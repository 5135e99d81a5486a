"""Analysis: what guides cost, where their maps lie, how faithful they are, what a ViT attends to."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
