"""convlib: two-dimensional convolution in hand-written kernels."""
