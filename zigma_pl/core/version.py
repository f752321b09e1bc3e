"""The version of the package; needs nothing of it."""

__version__ = "0.1.0"
