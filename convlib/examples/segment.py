"""Which pixels are coin, which are stained tissue: a small U-Net in PyTorch whose convolutions are convlib's.

    python -m convlib.examples.segment                   # trains on convlib.torch's modules
    python -m convlib.examples.segment --backend torch   # on PyTorch's own
    python -m convlib.examples.segment --backend both    # in turn, step by step, from the same weights

learns from two photographs inside the package scikit-image, coins of Pompeii and a stained section of tissue, and
writes before_after.png and curves.png to --output. Nobody drew the masks: they come from classical methods (watershed
for the coins, Otsu's threshold on one stain for the tissue), so what is scored is how well a network can imitate these,
by the intersection over union on crops of the right third of each photograph, which it has not been trained on.

Source: Ronneberger, Fischer, Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise

import click
import numpy as np

from convlib.examples.program import need, output_option, save, subplots

WIDTHS = 32, 64, 128  # filters on each level; each has half the rows and columns of the one before
CROP = 64  # pixels a side
BATCH = 8
LEARNING_RATE = 2e-3  # at first
HELD_OUT = 1 / 3  # of each photograph, at its right
BACKENDS = {"convlib": ("convlib",), "torch": ("torch",), "both": ("convlib", "torch")}


@dataclass(frozen=True)
class Photograph:
    """image: (3, H, W), float32 from 0 to 1; mask: (H, W), bool; columns from `held_out` on are for scoring."""

    name: str
    image: np.ndarray
    mask: np.ndarray
    held_out: int


@dataclass
class Trained:
    """A network, the loss and seconds of each step, and what it made of the held-out crops before and after."""

    network: object
    optimizer: object
    schedule: object
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    before: dict[str, np.ndarray] = field(default_factory=dict)
    after: dict[str, np.ndarray] = field(default_factory=dict)


def photographs():
    from skimage.data import coins, immunohistochemistry

    pictures = {"coins": (coins(), mask_of_coins), "tissue": (immunohistochemistry(), mask_of_tissue)}
    return [photograph(name, pixels, mask(pixels)) for name, (pixels, mask) in pictures.items()]


def photograph(name, pixels, mask):
    """From bytes, (H, W) or (H, W, 3)."""
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, -1)
    image = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / 255
    return Photograph(name, image, mask, round(pixels.shape[1] * (1 - HELD_OUT)))


def mask_of_coins(grey):
    """Watershed: the edges' strength is flooded from surely dark and surely bright pixels, scikit-image's example."""
    from scipy.ndimage import binary_fill_holes
    from skimage.filters import sobel
    from skimage.segmentation import watershed

    markers = np.where(grey < 30, 1, np.where(grey > 150, 2, 0))
    return binary_fill_holes(watershed(sobel(grey), markers) == 2)


def mask_of_tissue(colours):
    """Where the brown stain, one of three into which the colours are taken apart, is over Otsu's threshold."""
    from skimage.color import rgb2hed
    from skimage.filters import gaussian, threshold_otsu

    brown = gaussian(rgb2hed(colours)[..., 2], 2)
    return brown > threshold_otsu(brown)


def unet(backend):
    """Two levels down and up again; each level's features also go straight across to the way up."""
    import torch
    from torch import nn

    if backend == "convlib":
        from convlib.torch import Conv2d, ConvTranspose2d
    else:
        from torch.nn import Conv2d, ConvTranspose2d

    def twice(channels, filters):
        return nn.Sequential(
            Conv2d(channels, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU(inplace=True),
            Conv2d(filters, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU(inplace=True),
        )  # fmt: skip

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.ModuleList(twice(c, k) for c, k in zip((3, *WIDTHS), WIDTHS))
            self.up = nn.ModuleList(ConvTranspose2d(k, c, 2, stride=2) for c, k in pairwise(WIDTHS))
            self.join = nn.ModuleList(twice(2 * c, c) for c in WIDTHS[:-1])
            self.last = Conv2d(WIDTHS[0], 1, 1)

        def forward(self, x):
            """x: (N, 3, H, W); the result (N, 1, H, W), above zero where something is."""
            across = []
            for level, block in enumerate(self.down):
                x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
                across.append(x)
            for up, join, features in reversed(list(zip(self.up, self.join, across))):
                x = join(torch.cat([features, up(x)], 1))
            return self.last(x)

    return UNet()


def random_batch(pictures, random):
    """Crops of the photographs in turn, left of what is held out, mirrored and turned at random, and their masks."""
    images, masks = [], []
    for number in range(BATCH):
        picture = pictures[number % len(pictures)]
        row = random.integers(picture.mask.shape[0] - CROP + 1)
        column = random.integers(picture.held_out - CROP + 1)
        turns, mirrored = random.integers(4), random.integers(2)
        for crops, array in ((images, picture.image), (masks, picture.mask[None])):
            crop = np.rot90(array[:, row : row + CROP, column : column + CROP], turns, (1, 2))
            crops.append(crop[..., ::-1] if mirrored else crop)
    return np.stack(images), np.stack(masks).astype(np.float32)


def held_out_crops(picture):
    """Images (N, 3, CROP, CROP) and masks (N, CROP, CROP) that cover the held-out columns; the last ones overlap."""
    H, W = picture.mask.shape
    places = [(row, column) for row in starts(0, H) for column in starts(picture.held_out, W)]
    image, mask = picture.image, picture.mask
    return (
        np.stack([image[:, row : row + CROP, column : column + CROP] for row, column in places]),
        np.stack([mask[row : row + CROP, column : column + CROP] for row, column in places]),
    )


def starts(first, end):
    """Where crops begin that cover first .. end - 1."""
    return [min(start, end - CROP) for start in range(first, end, CROP)]


def predicted(network, images):
    import torch

    network.eval()
    with torch.inference_mode():
        return network(torch.from_numpy(images))[:, 0].numpy() > 0


def intersection_over_union(found, mask):
    union = np.sum(found | mask)
    return float(np.sum(found & mask) / union) if union else 1.0


def train_step(trained, images, masks):
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    trained.network.train()
    start = time.perf_counter()
    trained.optimizer.zero_grad()
    loss = binary_cross_entropy_with_logits(trained.network(torch.from_numpy(images)), torch.from_numpy(masks))
    loss.backward()
    trained.optimizer.step()
    trained.schedule.step()
    trained.seconds.append(time.perf_counter() - start)
    trained.losses.append(loss.item())


def started(backend, steps, seed):
    """The network with weights that depend on the seed alone; its steps become shorter towards the end."""
    import torch

    torch.manual_seed(seed)
    network = unet(backend)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    return Trained(network, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps))


def train(pictures, crops, backends, steps, seed):
    """Train a network for each of the backends, in turn at every step on the same batch."""
    from rich.progress import Progress

    networks = {backend: started(backend, steps, seed) for backend in backends}
    random = np.random.default_rng(seed)
    for trained in networks.values():
        trained.before = {name: predicted(trained.network, images) for name, (images, _) in crops.items()}
    with Progress(transient=True) as progress:
        task = progress.add_task("training", total=steps)
        for step in range(steps):
            batch = random_batch(pictures, random)
            in_turn = list(networks.values())
            for trained in in_turn if step % 2 else reversed(in_turn):
                train_step(trained, *batch)
            progress.advance(task)
    for trained in networks.values():
        trained.after = {name: predicted(trained.network, images) for name, (images, _) in crops.items()}
    return networks


def scores(found, crops):
    return {name: intersection_over_union(found[name], mask) for name, (_, mask) in crops.items()}


def show_table(networks, crops):
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("convolutions of", *(f"IoU, {name}" for name in crops), "mean IoU", "ms a step", box=box.SIMPLE)
    for backend, trained in networks.items():
        before, after = scores(trained.before, crops), scores(trained.after, crops)
        cells = [f"{before[name]:.3f} → {after[name]:.3f}" for name in crops]
        mean = np.mean(list(after.values()))
        table.add_row(backend, *cells, f"{mean:.3f}", f"{1e3 * np.median(trained.seconds):.1f}")
    Console(width=100).print(table)
    if len(networks) == 2:
        ratio = np.median(np.divide(networks["torch"].seconds, networks["convlib"].seconds))
        click.echo(f"a step on PyTorch's convolutions takes {ratio:.2f} times as long as one on convlib's (median)")


def draw_before_after(trained, crops, path):
    """Two crops of each photograph: as it is, its mask, and what the network took for it before and after training."""
    rows = [(name, crop) for name, (images, _) in crops.items() for crop in (0, len(images) // 2)]
    figure, axes = subplots(len(rows), 4, (8, 2 * len(rows)))
    for row, (name, crop) in zip(axes, rows, strict=True):
        images, masks = crops[name]
        shown = images[crop].transpose(1, 2, 0), masks[crop], trained.before[name][crop], trained.after[name][crop]
        for axis, picture in zip(row, shown, strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
    for axis, title in zip(axes[0], ("held out", "mask, by a classical method", "before", "after"), strict=True):
        axis.set_title(title, fontsize=9)
    save(figure, path)


def draw_curves(networks, path):
    figure, axis = subplots(1, 1, (7, 4))
    for backend, trained in networks.items():
        axis.plot(trained.losses, label=backend, linewidth=1)
    axis.set_xlabel("training step")
    axis.set_ylabel("cross-entropy on the batch")
    axis.legend()
    save(figure, path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--backend", type=click.Choice(list(BACKENDS)), default="convlib", show_default=True,
    help="Whose convolutions the network has.",
)  # fmt: skip
@click.option("--steps", type=click.IntRange(1), default=150, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights and of the crops.")
@output_option("segment")
def main(backend, steps, seed, output):
    """Train a small U-Net on two photographs; pictures in --output, IoU on held-out crops printed."""
    need("torch", "scipy", "skimage", "matplotlib")
    import numba
    import torch

    torch.set_num_threads(numba.get_num_threads())
    pictures = photographs()
    crops = {picture.name: held_out_crops(picture) for picture in pictures}
    networks = train(pictures, crops, BACKENDS[backend], steps, seed)
    output.mkdir(parents=True, exist_ok=True)
    draw_before_after(networks[BACKENDS[backend][0]], crops, output / "before_after.png")
    draw_curves(networks, output / "curves.png")
    show_table(networks, crops)


if __name__ == "__main__":
    main(prog_name="python -m convlib.examples.segment")
