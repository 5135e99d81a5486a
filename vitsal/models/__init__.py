"""Models: any timm ViT with its weights, its transform, its tokens, its pixels and its classes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
