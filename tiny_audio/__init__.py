"""Tiny Audio: train your own speech recogniser.

Importing this package imports nothing heavy; each part is imported where it is used.
"""

__version__ = "0.1.0"
