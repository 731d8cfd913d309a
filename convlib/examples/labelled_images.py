"""MNIST and the sets in its form, for the examples that learn from them: IDX files of a folder, or Keras' download."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convlib.examples.program import CannotRun

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
SIDE = 28


@dataclass(frozen=True)
class LabelledImages:
    """images: (N, 28, 28, 1), float32 from 0 to 1; labels: (N,), 0 to 9."""

    source: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def from_folder(folder: Path) -> LabelledImages:
    arrays = {name: read_idx(folder / file, 3 if "images" in name else 1) for name, file in FILES.items()}
    return checked(f"IDX files in {folder}", **arrays)


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The bytes of an IDX file (or its .gz) with this many axes: two zeros, type 8, axes, sizes, then the values."""
    zipped = path.with_name(path.name + ".gz")
    if not path.exists() and not zipped.exists():
        raise CannotRun(f"--data: {path.name} or {zipped.name} needed in {path.parent}, found neither")
    content = path.read_bytes() if path.exists() else unzipped(zipped)
    if content[:4] != bytes([0, 0, 8, axes]):
        raise CannotRun(f"--data: {path.name} is not an IDX file of bytes with {axes} axes: it begins {content[:4]!r}")
    header = 4 + 4 * axes
    if len(content) < header:
        raise CannotRun(f"--data: {path.name} ends within its header, after {len(content)} bytes")
    shape = tuple(map(int, np.frombuffer(content, ">u4", axes, offset=4)))
    if len(content) - header != math.prod(shape):
        raise CannotRun(f"--data: {path.name} announces the shape {shape}, but has {len(content) - header} bytes")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def unzipped(path):
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise CannotRun(f"--data: {path.name} cannot be unzipped: {error}") from None


def downloaded(name: str) -> LabelledImages:
    """`name` of keras.datasets, mnist or fashion_mnist, fetched by Keras into its own cache."""
    import keras

    try:
        train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises a bare Exception where it cannot fetch
        raise CannotRun(f"--download: Keras could not fetch {name}: {' '.join(str(error).split())}") from None
    return checked(f"Keras' copy of {name}", *train, *test)


def shuffled(source: str, images: np.ndarray, labels: np.ndarray, held_out: int, seed: int) -> LabelledImages:
    """Images and labels in random order, `held_out` of each label kept for testing."""
    order = np.random.default_rng(seed).permutation(len(labels))
    images, labels = images[order], labels[order]
    tests = np.zeros(len(labels), bool)
    for label in range(10):
        tests[np.flatnonzero(labels == label)[:held_out]] = True
    return checked(source, images[~tests], labels[~tests], images[tests], labels[tests])


def checked(source, train_images, train_labels, test_images, test_labels) -> LabelledImages:
    """Bytes, (N, 28, 28), and their labels: checked, and scaled to 0 to 1."""
    arrays = []
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if images.shape != (len(labels), SIDE, SIDE) or len(labels) == 0:
            raise CannotRun(
                f"{source}: {SIDE} x {SIDE} images and as many labels needed, got {images.shape}, {labels.shape}"
            )
        if labels.min() < 0 or labels.max() > 9:
            raise CannotRun(f"{source}: labels from 0 to 9 needed, got {labels.min()} to {labels.max()}")
        arrays += [images[..., None].astype(np.float32) / 255, labels.astype(np.int64)]
    return LabelledImages(source, *arrays)
