"""Students: small models that predict a teacher's map; its maps on disk, training, and how close they come."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
