"""What a network has learned on digits, carried over to other pictures: frozen, fine-tuned, and beside a fresh start.

    python -m convlib.examples.mnist                     # writes mnist/model.keras, the weights to begin with
    python -m convlib.examples.finetune --data FOLDER    # the IDX files of Fashion-MNIST, as they are or as .gz
    python -m convlib.examples.finetune --download       # Keras fetches them
    python -m convlib.examples.finetune                  # the 1,797 digits in the package scikit-learn

trains the network of convlib.examples.mnist three ways, for equally many steps on the same batches:

    frozen       the convolutions stay as MNIST made them; the dense layers learn, the last from nothing
    unfrozen     everything learns on from MNIST's weights, but for the last layer, which begins from nothing
    from scratch everything begins from nothing

and writes curves.png, feature_maps.png and unfrozen.keras to --output and prints a table, means over --runs with
other seeds. --layers keras does it on Keras' own convolutions.

Source: Yosinski, Clune, Bengio, Lipson, How transferable are features in deep neural networks?, NeurIPS 2014.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from convlib.examples import labelled_images
from convlib.examples.labelled_images import SIDE
from convlib.examples.mnist import (
    article_network,
    backend_option,
    draw_feature_maps,
    feature_maps,
    layers_option,
    settle_backend,
)
from convlib.examples.program import CannotRun, need, output_option, save, subplots

WAYS = ("frozen", "unfrozen", "from scratch")
HELD_OUT = 40  # of the 174 to 183 images that scikit-learn has of each digit
MARKS = 10  # how often during training the held-out images are asked


@dataclass(frozen=True)
class Learned:
    """One training: accuracy on the held-out images after each of some numbers of steps; seconds are the steps'."""

    steps: list[int]
    accuracies: list[float]
    seconds: float
    parameters: int


def from_scikit_learn(seed):
    """Its 8 x 8 digits of 0 to 16, stretched to 28 x 28 bytes."""
    need("sklearn", "skimage")
    from skimage.transform import resize
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.stack([resize(image / 16, (SIDE, SIDE), order=1) for image in digits.images])
    images = np.rint(images * 255).astype(np.uint8)
    return labelled_images.shuffled("scikit-learn's digits", images, digits.target, HELD_OUT, seed)


def load(folder, download, seed):
    if folder is not None:
        return labelled_images.from_folder(folder)
    return labelled_images.downloaded("fashion_mnist") if download else from_scikit_learn(seed)


def prepared(way, layers, weights):
    """The network as one of WAYS has it before training."""
    model = article_network(layers)
    if way == "from scratch":
        return model
    fresh = model.layers[-1].get_weights()
    load_weights(model, weights)
    model.layers[-1].set_weights(fresh)
    if way == "frozen":
        freeze_convolutions(model)
    return model


def load_weights(model, path):
    import keras

    import convlib.keras  # noqa: F401 - whose layers the file may name

    try:
        model.set_weights(keras.saving.load_model(path, compile=False).get_weights())
    except Exception as error:  # Keras, h5py and zipfile each have their own
        raise CannotRun(f"--weights: {path} does not hold this network's weights: {first_line(error)}") from None


def first_line(error):
    return str(error).strip().split("\n")[0]


def freeze_convolutions(model):
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            layer.trainable = False
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])


def batches(count, size, seed):
    """Indices of one batch after another, without end: all images in random order, then in another."""
    random = np.random.default_rng(seed)
    left = np.empty(0, int)
    while True:
        while len(left) < size:
            left = np.concatenate([left, random.permutation(count)])
        yield left[:size]
        left = left[size:]


def trained(model, data, steps, batch_size, seed, advance):
    """Train for so many steps, asking the held-out images at the start, at the end and in between."""
    marks = {round(mark) for mark in np.linspace(0, steps, MARKS + 1)}
    order = batches(len(data.train_labels), batch_size, seed)
    asked, accuracies, seconds = [], [], 0.0
    for step in range(steps + 1):
        if step in marks:
            asked.append(step)
            accuracies.append(accuracy(model, data.test_images, data.test_labels))
        if step < steps:
            chosen = next(order)
            start = time.perf_counter()
            model.train_on_batch(data.train_images[chosen], data.train_labels[chosen])
            seconds += time.perf_counter() - start
            advance()
    return Learned(asked, accuracies, seconds, sum(int(np.prod(w.shape)) for w in model.trainable_weights))


def accuracy(model, images, labels):
    return float(np.mean(model.predict(images, 500, verbose=0).argmax(1) == labels))


def compared(data, layers, weights, steps, batch_size, runs, seed):
    """All WAYS of training, `runs` times each with seeds of its own; and the last unfrozen model."""
    import keras
    from rich.progress import Progress

    learned = {way: [] for way in WAYS}
    with Progress(transient=True) as progress:
        task = progress.add_task("training", total=len(WAYS) * runs * steps)
        for run in range(seed, seed + runs):
            for way in WAYS:
                keras.utils.set_random_seed(run)
                model = prepared(way, layers, weights)
                learned[way].append(trained(model, data, steps, batch_size, run, lambda: progress.advance(task)))
                if way == "unfrozen":
                    unfrozen = model
    return learned, unfrozen


def show_table(learned):
    from rich import box
    from rich.console import Console
    from rich.table import Table

    first = learned[WAYS[0]][0]
    early, last = first.steps[1], first.steps[-1]
    table = Table(
        "", "parameters that learn", f"accuracy after {early} steps", f"after {last} steps", "ms a step", box=box.SIMPLE
    )
    for way, runs in learned.items():
        accuracies = np.array([run.accuracies for run in runs])
        milliseconds = 1e3 * np.median([run.seconds for run in runs]) / last
        table.add_row(
            way, f"{runs[0].parameters:,}", spread(accuracies[:, 1]), spread(accuracies[:, -1]), f"{milliseconds:.1f}"
        )
    Console(width=100).print(table)


def spread(values):
    """A mean, and where there are several values half the distance between the extremes."""
    mean = f"{np.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {np.ptp(values) / 2:.4f}"


def draw_curves(learned, path):
    figure, axis = subplots(1, 1, (7, 4.5))
    for way, runs in learned.items():
        steps, accuracies = runs[0].steps, np.array([run.accuracies for run in runs])
        (line,) = axis.plot(steps, accuracies.mean(0), marker="o", label=way)
        axis.fill_between(steps, accuracies.min(0), accuracies.max(0), color=line.get_color(), alpha=0.2)
    axis.set_xlabel("training steps")
    axis.set_ylabel("accuracy on held-out images")
    axis.legend()
    save(figure, path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", "folder", type=click.Path(path_type=Path), help="Folder with Fashion-MNIST's four IDX files.")
@click.option("--download", is_flag=True, help="Let Keras fetch Fashion-MNIST (30 MB) into its own cache.")
@click.option(
    "--weights", type=click.Path(path_type=Path), default=Path("mnist/model.keras"), show_default=True,
    help="What convlib.examples.mnist saved.",
)  # fmt: skip
@backend_option
@layers_option
@click.option("--steps", type=click.IntRange(1), default=200, show_default=True, help="Of each training.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Trainings of each kind.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first run; the next ones count on.")
@output_option("finetune", "the pictures and the model")
def main(folder, download, weights, backend, layers, steps, batch_size, runs, seed, output):
    """Fine-tune the digits' network on other pictures, beside a fresh start; pictures in --output, table printed."""
    settle_backend(backend)
    if not weights.is_file():
        raise CannotRun(f"--weights: {weights} is not there; python -m convlib.examples.mnist writes mnist/model.keras")
    data = load(folder, download, seed)
    click.echo(
        f"{data.source}: {len(data.train_labels):,} to learn from, {len(data.test_labels):,} held out; "
        f"{steps} steps of {batch_size}, Conv2D of {layers} on {backend}"
    )
    learned, unfrozen = compared(data, layers, weights, steps, batch_size, runs, seed)
    output.mkdir(parents=True, exist_ok=True)
    unfrozen.save(output / "unfrozen.keras")
    draw_curves(learned, output / "curves.png")
    draw_feature_maps(data.test_images[0], feature_maps(unfrozen, data.test_images[0]), output / "feature_maps.png")
    show_table(learned)


if __name__ == "__main__":
    main(prog_name="python -m convlib.examples.finetune")
