"""The vector type and the memory functions that the parts of the CPU weight gradient share."""

import numba
import numpy as np

from .short_floats import memory_functions
from .vectors import Vector, lanes


class Types:
    """The vector type and the element functions of one dtype."""

    def __init__(self, dtype_name):
        self.real = np.float64 if dtype_name == "float64" else np.float32
        self.item = np.dtype(self.real).itemsize
        self.stored_item = 2 if dtype_name.endswith("16") else self.item
        self.W = lanes(self.real)
        self.V = Vector(numba.from_dtype(np.dtype(self.real)), self.W)
        self.read, self.write, self.read_vector, self.write_vector = memory_functions(dtype_name)
        self.read_sum, self.write_sum, self.read_sums, self.write_sums = memory_functions(np.dtype(self.real).name)
