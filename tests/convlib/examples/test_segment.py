"""The example that segments: masks, scores, and whole short runs on either back end."""

import re
from importlib.util import find_spec

import numpy as np
import pytest
from click.testing import CliRunner

from convlib.examples import segment
from tests.convlib.examples.programs import is_png

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed (extra torch)")


@pytest.fixture
def tiny(monkeypatch):
    """A network and crops small enough for a test."""
    monkeypatch.setattr(segment, "WIDTHS", (8, 16))
    monkeypatch.setattr(segment, "CROP", 32)
    monkeypatch.setattr(segment, "BATCH", 4)


def run(tmp_path, *arguments):
    result = CliRunner().invoke(segment.main, ["--output", str(tmp_path / "output"), *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def scores(printed, backend):
    """(before, after) for coins and tissue, and the mean, of one line of the table."""
    (line,) = re.findall(rf"^ *{backend} +(\S+) → (\S+) +(\S+) → (\S+) +(\S+) +\S+ *$", printed, re.MULTILINE)
    return [float(value) for value in line]


@needs_torch
def test_learns_on_either_back_end_from_the_same_weights(tiny, tmp_path):
    printed = run(tmp_path, "--backend", "both", "--steps", 80)
    ours, theirs = (scores(printed, backend) for backend in ("convlib", "torch"))
    assert ours[4] > 0.7
    assert ours[1] > ours[0]
    assert ours[3] > ours[2]
    assert ours[0::2][:2] == theirs[0::2][:2]
    assert abs(ours[4] - theirs[4]) < 0.1
    assert re.search(r"takes \d+\.\d\d times as long as one on convlib's \(median\)", printed)
    assert is_png(tmp_path / "output" / "before_after.png")
    assert is_png(tmp_path / "output" / "curves.png")


@needs_torch
@pytest.mark.parametrize("backend", ["convlib", "torch"])
def test_one_back_end_alone(backend, tiny, tmp_path):
    printed = run(tmp_path, "--backend", backend, "--steps", 2)
    assert len(scores(printed, backend)) == 5
    assert "takes" not in printed


@needs_torch
def test_every_convolution_is_convlibs_or_none(tiny):
    from torch import nn

    for backend, module in (("convlib", "convlib.torch"), ("torch", "torch.nn.modules.conv")):
        kinds = [m for m in segment.unet(backend).modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
        assert len(kinds) == 2 * 2 + 1 + 2 + 1
        assert {type(kind).__module__ for kind in kinds} == {module}


@needs_torch
def test_the_first_steps_are_the_same_on_both(tiny):
    pictures = segment.photographs()
    crops = {picture.name: segment.held_out_crops(picture) for picture in pictures}
    networks = segment.train(pictures, crops, ("convlib", "torch"), 3, seed=1)
    np.testing.assert_allclose(networks["convlib"].losses, networks["torch"].losses, rtol=1e-3)


def test_masks_are_about_the_objects():
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra examples)")
    coins, tissue = segment.photographs()
    assert 0.25 < coins.mask.mean() < 0.45
    assert 0.15 < tissue.mask.mean() < 0.6
    grey = coins.image[0]
    assert grey[coins.mask].mean() > 1.5 * grey[~coins.mask].mean()
    red, _, blue = tissue.image
    assert (red - blue)[tissue.mask].mean() > (red - blue)[~tissue.mask].mean() + 0.1


def test_training_never_sees_the_held_out_columns():
    H, W = 80, 120
    image = np.broadcast_to(np.arange(W) < 80, (3, H, W)).astype(np.float32)
    picture = segment.Photograph("left", image, image[0] > 0, held_out=80)
    random = np.random.default_rng(0)
    for _ in range(20):
        images, masks = segment.random_batch([picture], random)
        assert images.shape == (segment.BATCH, 3, segment.CROP, segment.CROP)
        assert (images == 1).all()
        assert (masks == 1).all()


def test_crops_and_masks_are_turned_together():
    random = np.random.default_rng(0)
    pixels = random.random((70, 120)).astype(np.float32)
    picture = segment.Photograph("noise", np.stack([pixels] * 3), pixels > 0.5, held_out=100)
    images, masks = segment.random_batch([picture], random)
    np.testing.assert_array_equal(images[:, 0] > 0.5, masks[:, 0] == 1)


def test_held_out_crops_cover_what_was_held_out():
    H, W = 150, 200
    places = np.arange(H * W).reshape(H, W)
    picture = segment.Photograph("places", np.stack([places] * 3), places >= 0, held_out=130)
    images, masks = segment.held_out_crops(picture)
    assert masks.shape == (3 * 2, segment.CROP, segment.CROP)
    covered = np.unique(images)
    assert set(places[:, 130:].flat) <= set(covered)
    assert covered.min() % W >= W - 2 * segment.CROP


def test_intersection_over_union():
    found, mask = np.array([[1, 1, 0, 0]], bool), np.array([[0, 1, 1, 0]], bool)
    assert segment.intersection_over_union(found, mask) == pytest.approx(1 / 3)
    assert segment.intersection_over_union(mask, mask) == 1
    assert segment.intersection_over_union(found & False, mask & False) == 1
