"""The studies of ``evidence.py``, one file each, and the page made from their figures."""
