"""Running a program in a process of its own, and data small enough for it."""

import gzip
import os
import struct
import subprocess
import sys

import numpy as np


def run_program(name, *arguments, code=0, **environment):
    """What the example prints: Keras settles its back end when it is imported, so once for a process."""
    command = [sys.executable, "-m", f"convlib.examples.{name}", *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def tiny_digits(count, seed):
    """Images of one bright bar each, its row telling the label, under noise."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    images = random.integers(0, 60, (count, 28, 28))
    for image, label in zip(images, labels, strict=True):
        image[2 + 2 * label : 5 + 2 * label, 4:24] += 180
    return images.astype(np.uint8), labels.astype(np.uint8)


def idx(*shape, values=b""):
    return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + values


def write_idx(path, array):
    content = idx(*array.shape, values=array.tobytes())
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")
