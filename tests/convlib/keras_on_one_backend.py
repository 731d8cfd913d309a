"""What test_keras.py runs in a process for each back end, since Keras settles its back end when it is imported."""

import doctest
import itertools

import keras
import numpy as np
import pytest
from keras import ops

import convlib.keras
from convlib.keras import Conv2D, Conv2DTranspose, DepthwiseConv2D

RANDOM = np.random.default_rng(0)
FORMATS = ["channels_last", "channels_first"]
PAIRS = {
    Conv2D: keras.layers.Conv2D,
    DepthwiseConv2D: keras.layers.DepthwiseConv2D,
    Conv2DTranspose: keras.layers.Conv2DTranspose,
}
LAYERS = [
    (Conv2D, {"filters": 6, "kernel_size": 3}),
    (Conv2D, {"filters": 6, "kernel_size": (3, 2), "padding": "same", "strides": 2, "activation": "relu"}),
    (Conv2D, {"filters": 6, "kernel_size": 2, "padding": "same", "dilation_rate": (2, 3), "use_bias": False}),
    (Conv2D, {"filters": 6, "kernel_size": 3, "groups": 2, "strides": (2, 1)}),
    (DepthwiseConv2D, {"kernel_size": 3}),
    (DepthwiseConv2D, {"kernel_size": 3, "padding": "same", "depth_multiplier": 2, "activation": "relu"}),
    (DepthwiseConv2D, {"kernel_size": (2, 3), "strides": 2, "use_bias": False}),
    (DepthwiseConv2D, {"kernel_size": 3, "dilation_rate": 2, "padding": "same"}),
    (Conv2DTranspose, {"filters": 6, "kernel_size": 3}),
    (Conv2DTranspose, {"filters": 6, "kernel_size": (3, 2), "padding": "same", "strides": 2, "activation": "relu"}),
    (Conv2DTranspose, {"filters": 6, "kernel_size": 2, "strides": (3, 2), "output_padding": (2, 0)}),
    (Conv2DTranspose, {"filters": 6, "kernel_size": 3, "dilation_rate": 2, "padding": "same", "use_bias": False}),
]


@pytest.fixture
def calls(monkeypatch):
    """The operations that convlib's layers asked the back end's adapter for."""
    seen, applied = [], convlib.keras.applied

    def counted(name, *arguments, **parameters):
        seen.append(name)
        return applied(name, *arguments, **parameters)

    monkeypatch.setattr(convlib.keras, "applied", counted)
    return seen


def images(data_format, count=4):
    shape = (count, 9, 8, 4) if data_format == "channels_last" else (count, 4, 9, 8)
    return RANDOM.standard_normal(shape).astype(np.float32)


def trained(layer, x, target):
    """Losses of three steps, and the weights after them: gradients by kernel, bias and, through a scale, input."""
    model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Rescaling(0.5), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    losses = [model.train_on_batch(x, target) for _ in range(3)]
    return [float(np.ravel(loss)[0]) for loss in losses], model.get_weights()


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize(("kind", "parameters"), LAYERS, ids=lambda p: p.__name__ if isinstance(p, type) else str(p))
def test_a_layer_gives_and_learns_what_keras_own_does(kind, parameters, data_format, calls):
    x = images(data_format)
    ours = kind(**parameters, data_format=data_format)
    theirs = PAIRS[kind].from_config(ours.get_config())
    ours.build(x.shape)
    theirs.build(x.shape)
    random_weights = [RANDOM.standard_normal(w.shape).astype(np.float32) / 4 for w in ours.get_weights()]
    ours.set_weights(random_weights)
    theirs.set_weights(random_weights)

    y, wanted = (ops.convert_to_numpy(layer(x)) for layer in (ours, theirs))
    assert len(calls) == 1
    assert y.shape == tuple(ours.compute_output_shape(x.shape))
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)

    target = RANDOM.standard_normal(y.shape).astype(np.float32)
    (losses, weights), (their_losses, their_weights) = trained(ours, x, target), trained(theirs, x, target)
    np.testing.assert_allclose(losses, their_losses, rtol=1e-5)
    for mine, their, before in zip(weights, their_weights, random_weights, strict=True):
        assert np.abs(mine - before).max() > 1e-4
        np.testing.assert_allclose(mine, their, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", PAIRS)
def test_precision_is_saved_and_goes_to_the_back_end_with_float32(kind, monkeypatch):
    name = "conv_transpose2d" if kind is Conv2DTranspose else "conv2d"
    asked, function = [], getattr(convlib.keras.framework, name)

    def noted(*arguments, precision=None, **parameters):
        asked.append(precision)
        return function(*arguments, precision=precision, **parameters)

    monkeypatch.setattr(convlib.keras.framework, name, noted)
    size = {"kernel_size": 3} if kind is DepthwiseConv2D else {"filters": 6, "kernel_size": 3}
    layer = kind.from_config(kind(**size, precision="tf32").get_config())
    for each in (layer, kind(**size), kind(**size, precision="tf32", dtype="mixed_bfloat16")):
        each(images("channels_last"))
    assert asked == ["tf32", None, None]
    with pytest.raises(ValueError, match="precision: one of .* needed, got 'bf16'"):
        kind(**size, precision="bf16")


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_transposed_results_lie_where_keras_puts_them(padding):
    """Windows up to four, strides up to three, with every output_padding."""
    sizes = [
        (window, stride, dilation, added)
        for window, stride, dilation in itertools.product((1, 2, 3, 4), (1, 2, 3), (1, 2))
        for added in (None, *range(stride))
        if (stride == 1 or dilation == 1)
    ]
    x = images("channels_last", 1)
    for window, stride, dilation, added in sizes:
        ours = Conv2DTranspose(
            2, (window, 3), strides=stride, dilation_rate=dilation, padding=padding, output_padding=added
        )
        theirs = keras.layers.Conv2DTranspose.from_config(ours.get_config())
        theirs.build(x.shape)
        ours.build(x.shape)
        ours.set_weights(theirs.get_weights())
        y, wanted = (ops.convert_to_numpy(layer(x)) for layer in (ours, theirs))
        assert y.shape == wanted.shape, (window, stride, dilation, added)
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5, err_msg=str((window, stride, dilation, added)))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_mixed_policy_computes_in_16_bits(policy):
    x = images("channels_last")
    for kind in (Conv2D, Conv2DTranspose):
        layer = kind(6, 3, dtype=policy)
        y = layer(x)
        assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
        theirs = PAIRS[kind](6, 3)
        theirs.build(x.shape)
        theirs.set_weights(layer.get_weights())
        wanted = ops.convert_to_numpy(theirs(x))
        error = np.linalg.norm(ops.convert_to_numpy(ops.cast(y, "float32")) - wanted) / np.linalg.norm(wanted)
        assert error < {"mixed_bfloat16": 2e-2, "mixed_float16": 3e-3}[policy]


def test_a_subclass_may_change_the_convolution_as_keras_documents():
    class Doubled(Conv2D):
        def convolution_op(self, inputs, kernel):
            return super().convolution_op(inputs, 2 * kernel)

    x = images("channels_last")
    layer, plain = Doubled(3, 3, bias_initializer="ones"), Conv2D(3, 3, bias_initializer="ones")
    y = ops.convert_to_numpy(layer(x))
    plain.build(x.shape)
    plain.set_weights([2 * layer.get_weights()[0], layer.get_weights()[1]])
    np.testing.assert_allclose(y, ops.convert_to_numpy(plain(x)), rtol=1e-4, atol=1e-5)


def test_convolution_op_is_the_convolution_alone():
    layer = Conv2D(6, 3, activation="relu")
    x = images("channels_last")
    y = layer(x)
    before = ops.convert_to_numpy(layer.convolution_op(ops.convert_to_tensor(x), layer.kernel, layer.bias))
    assert (before < 0).any()
    np.testing.assert_array_equal(ops.convert_to_numpy(y), np.maximum(before, 0))


def test_integers_are_taken_as_keras_takes_them():
    x = RANDOM.integers(0, 255, (1, 6, 6, 1), np.uint8)
    layer = Conv2D(2, 3)
    np.testing.assert_allclose(
        ops.convert_to_numpy(layer(x)), ops.convert_to_numpy(layer(x.astype(np.float32))), rtol=1e-6
    )


def test_a_functional_model_is_cloned_saved_and_loaded(tmp_path):
    inputs = keras.Input((16, 16, 3))
    x = Conv2D(8, 3, padding="same", activation="relu", name="first")(inputs)
    skip = x
    x = DepthwiseConv2D(3, strides=2, padding="same")(x)
    x = Conv2DTranspose(8, 2, strides=2)(x)
    model = keras.Model(inputs, keras.layers.Add()([x, skip]))
    model.save(tmp_path / "model.keras")
    images = RANDOM.standard_normal((2, 16, 16, 3)).astype(np.float32)
    wanted = model.predict(images, verbose=0)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.get_layer("first")) is Conv2D
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), wanted)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone.predict(images, verbose=0), wanted)


def test_examples_in_docstrings_give_what_they_show():
    found = doctest.testmod(convlib.keras)
    assert (found.attempted, found.failed) == (3, 0)


def test_errors_of_the_constructor_are_keras_own():
    with pytest.raises(ValueError, match="`strides > 1` not supported in conjunction with `dilation_rate > 1`"):
        Conv2D(4, 3, strides=2, dilation_rate=2)
