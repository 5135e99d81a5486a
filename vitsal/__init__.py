"""vitsal: how far can a Vision Transformer be pushed by showing it only the patches that matter?"""

__version__ = "0.1.0"
