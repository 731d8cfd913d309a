"""CUDA C through cupy.RawKernel: each .cu file with its thin Python launcher."""
