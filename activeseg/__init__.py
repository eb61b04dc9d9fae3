"""Active learning for semantic segmentation. Importing this package imports nothing heavy."""

__version__ = "0.1.0"
