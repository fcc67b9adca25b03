"""Tensors: one architecture in any size, its cache, its greedy decoder, and the runtimes behind one seam (``backend.py``)."""
