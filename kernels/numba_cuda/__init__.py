"""Numba CUDA."""
