"""Kernels to integers. One method a file."""
