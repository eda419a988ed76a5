"""Kernels for a CPU that are compiled on the machine that runs them; without a compiler PyTorch's operations do the same."""

from launch.native.build import library

__all__ = ["library"]
