"""Cervicyte: an attention classifier for cervical cells, its honest evaluation, and why it decides.

For research use only. Importing this package imports no torch; the rooms do, when they are used.
"""

__version__ = "0.1.0"
