"""The example that carries weights over: whole runs on a tiny IDX folder, and what it says when it cannot run."""

import re
from importlib.util import find_spec

import numpy as np
import pytest

from convlib.examples import finetune
from tests.convlib.examples.programs import is_png, run_program

needs_keras = pytest.mark.skipif(
    find_spec("keras") is None or find_spec("torch") is None, reason="Keras or PyTorch is not installed"
)
SHORT = ("--steps", 20, "--batch-size", 20, "--runs", 1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """What the example mnist saves, trained on a folder of tiny images."""
    from tests.convlib.examples.programs import tiny_digits, write_idx

    folder = tmp_path_factory.mktemp("digits")
    for part, count in (("train", 300), ("t10k", 40)):
        images, labels = tiny_digits(count, seed=0)
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    output = tmp_path_factory.mktemp("mnist")
    run_program("mnist", "--data", folder, "--backend", "torch", "--epochs", 3, "--batch-size", 20, "--output", output)
    return output / "model.keras"


def rows(printed):
    """The table: what each way learned with, and its accuracies early and at last."""
    pattern = r"^ *(frozen|unfrozen|from scratch) +([\d,]+) +([\d.]+)(?: ± [\d.]+)? +([\d.]+)(?: ± [\d.]+)? +[\d.]+ *$"
    found = re.findall(pattern, printed, re.MULTILINE)
    return {way: (int(count.replace(",", "")), float(early), float(last)) for way, count, early, last in found}


@needs_keras
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_compares_three_ways_on_either_back_end(backend, weights, folder, tmp_path):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    output = tmp_path / "output"
    printed = run_program(
        "finetune", "--data", folder, "--weights", weights, "--backend", backend, "--output", output, *SHORT
    )
    assert f"300 to learn from, 40 held out; 20 steps of 20, Conv2D of convlib on {backend}" in printed
    table = rows(printed)
    assert {way: row[0] for way, row in table.items()} == {"frozen": 37_578, "unfrozen": 93_322, "from scratch": 93_322}
    assert table["unfrozen"][2] > 0.9
    assert table["unfrozen"][1] > table["from scratch"][1]
    assert is_png(output / "curves.png")
    assert is_png(output / "feature_maps.png")
    assert (output / "unfrozen.keras").exists()


@needs_keras
def test_a_seed_gives_keras_own_layers_the_same_training(weights, folder, tmp_path):
    data = ("--data", folder, "--weights", weights, "--backend", "torch", "--output", tmp_path / "output")
    ours, theirs = (rows(run_program("finetune", *data, "--layers", kind, *SHORT)) for kind in ("convlib", "keras"))
    for way in finetune.WAYS:
        np.testing.assert_allclose(ours[way], theirs[way], atol=0.03)


@needs_keras
def test_without_fashion_it_takes_scikit_learns_digits(weights, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra examples)")
    printed = run_program(
        "finetune", "--weights", weights, "--backend", "torch", "--steps", 1, "--runs", 1, "--output", tmp_path
    )
    assert "scikit-learn's digits: 1,397 to learn from, 400 held out" in printed


@needs_keras
def test_a_file_of_other_weights_is_named(folder, tmp_path):
    other = tmp_path / "other.keras"
    other.write_bytes(b"not a model")
    printed = run_program("finetune", "--data", folder, "--weights", other, "--backend", "torch", code=2)
    assert printed.splitlines()[-1].startswith(f"--weights: {other} does not hold this network's weights: ")


@needs_keras
def test_frozen_convolutions_do_not_learn_and_unfrozen_ones_do(weights, folder):
    program = f"""
        import os
        os.environ["KERAS_BACKEND"] = "torch"
        import numpy as np
        from convlib.examples import finetune, labelled_images
        data = labelled_images.from_folder(__import__("pathlib").Path({str(folder)!r}))
        for way in finetune.WAYS:
            model = finetune.prepared(way, "convlib", {str(weights)!r})
            before = [layer.get_weights() for layer in model.layers]
            finetune.trained(model, data, 2, 20, 0, lambda: None)
            after = [layer.get_weights() for layer in model.layers]
            print(way, [any((a != b).any() for a, b in zip(*pair)) for pair in zip(before, after) if pair[0]])
    """
    import subprocess
    import sys
    import textwrap

    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "frozen [False, False, False, True, True]",
        "unfrozen [True, True, True, True, True]",
        "from scratch [True, True, True, True, True]",
    ]


def test_weights_that_are_not_there_come_with_how_to_get_them(refusal, tmp_path):
    line = refusal(finetune.main, "--weights", tmp_path / "model.keras")
    assert line == (
        f"--weights: {tmp_path / 'model.keras'} is not there; python -m convlib.examples.mnist writes mnist/model.keras"
    )


def test_a_folder_without_the_files_is_named(refusal, tmp_path):
    (tmp_path / "model.keras").touch()
    line = refusal(finetune.main, "--weights", tmp_path / "model.keras", "--data", tmp_path)
    assert line.startswith("--data: train-images-idx3-ubyte or ")


def test_without_scikit_learn_it_says_what_brings_it(refusal, tmp_path):
    (tmp_path / "model.keras").touch()
    line = refusal(finetune.main, "--weights", tmp_path / "model.keras", missing=["sklearn"])
    assert line.startswith("the example needs scikit-learn, which is not installed: ")


def test_a_spread_is_half_the_way_between_the_extremes():
    assert finetune.spread(np.array([0.5, 0.75, 1.0])) == "0.7500 ± 0.2500"
    assert finetune.spread(np.array([0.5])) == "0.5000"


def test_batches_pass_over_all_images_in_another_order_each_time():
    taken = [index for _, batch in zip(range(6), finetune.batches(9, 3, seed=0), strict=False) for index in batch]
    assert sorted(taken[:9]) == sorted(taken[9:]) == list(range(9))
    assert taken[:9] != taken[9:]


def test_batches_may_be_larger_than_the_set():
    batch = next(finetune.batches(3, 7, seed=0))
    assert len(batch) == 7
    assert set(batch) == {0, 1, 2}
