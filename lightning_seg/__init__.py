"""Training methods for semantic segmentation that go beyond per-pixel cross-entropy.

`__init__.pyi` lists the names of the package. Each is imported when it is first used, so that the
command prints its help without the seconds that the import of Lightning takes.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
