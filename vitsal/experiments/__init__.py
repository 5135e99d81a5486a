"""Experiments: a target that sees what guides keep; its predictions in a journal, outcomes, results tables."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
