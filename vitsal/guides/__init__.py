"""Guides: callables from images to maps; attention, rollout and flow behind those that explain a ViT."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
