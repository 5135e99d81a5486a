"""Data: pictures and labelled images from any source, read whole or refused, skipped by name; the embedded scenes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
