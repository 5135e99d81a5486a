"""Jobs: files that are whole, outputs that can be written, what identifies a piece of work, processes, memory."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
