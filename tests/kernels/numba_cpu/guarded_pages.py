"""Arrays behind which nothing may be read: the next page is without any right, and a read there ends the process."""

import ctypes
import mmap

import numpy as np

PROT_NONE = 0


def before_a_guard(array):
    """A copy of `array` that ends at the end of a page, the next one without any right to it."""
    pages = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + pages), mmap.PAGESIZE, PROT_NONE) == 0
    copy = np.frombuffer(memory, array.dtype, array.size, pages - array.nbytes).reshape(array.shape)
    copy[:] = array
    return copy
