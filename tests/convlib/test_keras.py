"""The Keras layers, in a process for each back end: our tests, Keras' own tests, models saved on one for the other."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# Not importorskip: Keras imports its back end, which is TensorFlow where nobody says otherwise.
pytestmark = pytest.mark.skipif(find_spec("keras") is None, reason="Keras is not installed: pip install keras")

HERE = Path(__file__).parent
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed"))
    for name in ("torch", "jax")
]

# Keras' tests with our classes in place of Keras'; one- and three-dimensional layers stay Keras' own, and are left out.
# No configuration: an environment inside this repository would lend them ours.
KERAS_OWN_TESTS = """
import os
import sys
from pathlib import Path
import pytest
from keras.src import layers
import convlib.keras

asked, applied = set(), convlib.keras.applied

def counted(name, layer, *arguments, **parameters):
    asked.add((name, type(layer).__name__))
    return applied(name, layer, *arguments, **parameters)

convlib.keras.applied = counted
for name in ("Conv2D", "DepthwiseConv2D", "Conv2DTranspose"):
    setattr(layers, name, getattr(convlib.keras, name))
folder = Path(layers.__file__).parent / "convolutional"
files = [str(folder / f"{name}_test.py") for name in ("conv", "depthwise_conv", "conv_transpose")]
options = ["-q", "-c", os.devnull, "--rootdir", str(folder), "-p", "no:cacheprovider", "-rs", "-W", "ignore"]
code = pytest.main([*files, *options, "-k", "not 1d and not 3d"])
wanted = {("conv2d", "Conv2D"), ("conv2d", "DepthwiseConv2D"), ("conv_transpose2d", "Conv2DTranspose")}
assert asked == wanted, asked
sys.exit(code)
"""

SAVE = """
import sys
import keras, numpy as np
from keras import layers
from convlib.keras import Conv2D, Conv2DTranspose, DepthwiseConv2D
keras.utils.set_random_seed(0)
model = keras.Sequential([
    layers.Input((12, 12, 3)), Conv2D(8, 3, activation="relu"), DepthwiseConv2D(3, padding="same"), layers.ReLU(),
    Conv2DTranspose(4, 2, strides=2), layers.Flatten(), layers.Dense(5),
])
x = np.random.default_rng(0).standard_normal((2, 12, 12, 3)).astype(np.float32)
model.compile("adam", "mse")
model.fit(x, np.zeros((2, 5)), epochs=2, verbose=0)
model.save(sys.argv[1] + "/model.keras")
np.save(sys.argv[1] + "/y.npy", model.predict(x, verbose=0))
"""

LOAD = """
import sys
import keras, numpy as np
import convlib.keras
model = keras.models.load_model(sys.argv[1] + "/model.keras")
assert [type(layer).__module__ for layer in model.layers].count("convlib.keras") == 3
x = np.random.default_rng(0).standard_normal((2, 12, 12, 3)).astype(np.float32)
np.testing.assert_allclose(model.predict(x, verbose=0), np.load(sys.argv[1] + "/y.npy"), rtol=1e-4, atol=1e-5)
print(keras.config.backend())
"""


def python(backend, *arguments, code=0):
    """The output of a new Python process whose Keras has this back end."""
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_give_and_learn_what_keras_own_do(backend):
    file = HERE / "keras_on_one_backend.py"
    printed = python(backend, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", str(file))
    assert " passed" in printed
    assert "skipped" not in printed


@pytest.mark.parametrize("backend", BACKENDS)
def test_keras_own_tests_pass(backend):
    printed = python(backend, "-c", KERAS_OWN_TESTS)
    assert " passed" in printed
    for line in printed.splitlines():  # Keras leaves out what its constructor refuses, whoever computes
        assert "SKIPPED" not in line or "`output_padding` must be less than `strides`" in line


@pytest.mark.skipif(not (find_spec("torch") and find_spec("jax")), reason="torch or jax is not installed")
def test_a_model_saved_on_one_back_end_loads_on_the_other(tmp_path):
    python("torch", "-c", SAVE, str(tmp_path))
    assert python("jax", "-c", LOAD, str(tmp_path)).split()[-1] == "jax"


def test_another_back_end_is_refused_in_words():
    printed = python("numpy", "-c", "import convlib.keras", code=1)
    assert "ImportError: convlib.keras: Keras' back end must be torch or jax (KERAS_BACKEND), got numpy" in printed
