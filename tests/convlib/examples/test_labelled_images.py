"""IDX files: what is read, and the one line about what is missing or damaged."""

import numpy as np
import pytest

from convlib.examples import labelled_images
from convlib.examples.program import CannotRun
from tests.convlib.examples.programs import idx, tiny_digits

IMAGES, LABELS = "t10k-images-idx3-ubyte", "train-labels-idx1-ubyte"


def test_a_folder_is_read_zipped_or_not(folder):
    data = labelled_images.from_folder(folder)
    images, labels = tiny_digits(300, seed=0)
    np.testing.assert_array_equal(np.rint(data.train_images[..., 0] * 255), images)
    np.testing.assert_array_equal(data.train_labels, labels)
    assert data.test_images.shape == (40, 28, 28, 1)
    assert data.test_images.dtype == np.float32
    assert data.test_images.max() <= 1


def test_a_folder_without_the_files_is_named(tmp_path):
    with pytest.raises(CannotRun) as refused:
        labelled_images.from_folder(tmp_path)
    wanted = f"--data: train-images-idx3-ubyte or train-images-idx3-ubyte.gz needed in {tmp_path}, found neither"
    assert str(refused.value) == wanted


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (IMAGES, b"<html>", "is not an IDX file of bytes with 3 axes: it begins b'<htm'"),
        (IMAGES, b"", "is not an IDX file of bytes with 3 axes: it begins b''"),
        (IMAGES, idx(2, 28, 28)[:9], "ends within its header, after 9 bytes"),
        (IMAGES, idx(2, 28, 28, values=b"12"), "announces the shape (2, 28, 28), but has 2 bytes"),
        (IMAGES, idx(0, 28, 28), "28 x 28 images and as many labels needed, got (0, 28, 28), (40,)"),
        (LABELS, idx(300, values=bytes([10] * 300)), "labels from 0 to 9 needed, got 10 to 10"),
        ("train-images-idx3-ubyte.gz", b"not zipped", "cannot be unzipped: Not a gzipped file"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_a_damaged_file_is_named(name, content, words, folder):
    (folder / name).write_bytes(content)
    with pytest.raises(CannotRun) as refused:
        labelled_images.from_folder(folder)
    assert words in str(refused.value)


def test_shuffled_images_keep_their_labels_and_hold_out_as_many_of_each():
    images, labels = tiny_digits(100, seed=0)
    data = labelled_images.shuffled("bars", images, labels, held_out=3, seed=0)
    np.testing.assert_array_equal(np.bincount(data.test_labels), [3] * 10)
    np.testing.assert_array_equal(np.bincount(data.train_labels), [7] * 10)
    rows = data.train_images[..., 0].mean(2).argmax(1)
    np.testing.assert_array_equal((rows - 2) // 2 - data.train_labels <= 1, True)
    again = labelled_images.shuffled("bars", images, labels, held_out=3, seed=1)
    assert not np.array_equal(data.train_labels, again.train_labels)
