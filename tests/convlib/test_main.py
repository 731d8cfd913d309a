"""python -m convlib: its commands' tables, JSON and refusals."""

import json

import pytest
from click.testing import CliRunner

import convlib
from convlib import compiling, layers
from convlib.__main__ import main

CALL = ("explain", "--x", "1x64x56x56", "--w", "64x64x3x3")


def run(*arguments, code=0):
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


def test_info_says_what_the_machine_has():
    found = json.loads(run("info", "--json"))
    assert found == convlib.info()
    assert found["families"]["numba_cpu"] == "ready"
    table = run("info")
    for text in ("numba_cpu ready", found["processor"], f"numpy {found['packages']['numpy']}"):
        assert text in table


def test_kernels_lists_every_kernel_with_its_idea():
    table = " ".join(run("kernels").split())
    listed = json.loads(run("kernels", "--json"))
    assert [entry["name"] for entry in listed] == [facts.name for facts in convlib.kernels()]
    for facts in convlib.kernels():
        assert facts.name in table


def test_explain_names_the_chosen_kernel():
    explanation = convlib.explain((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    assert explanation.chosen
    found = json.loads(run(*CALL, "--padding", "1", "--json"))
    assert found["chosen"] == explanation.chosen
    assert found["problem"]["padding"] == [[1, 1], [1, 1]]
    verdicts = {candidate["name"]: candidate["verdict"] for candidate in found["candidates"]}
    assert verdicts[explanation.chosen] == "chosen"
    row = next(line for line in run(*CALL, "--padding", "1").splitlines() if explanation.chosen + " " in line)
    assert "  chosen " in row


@pytest.mark.parametrize(
    ("options", "field", "wanted"),
    [
        (("--stride", "2"), "stride", [2, 2]),
        (("--stride", "2x1"), "stride", [2, 1]),
        (("--dilation", "3x2"), "dilation", [3, 2]),
        (("--padding", "same"), "padding", [[1, 1], [1, 1]]),
        (("--padding", "1x2"), "padding", [[1, 1], [2, 2]]),
        (("--padding", "0,1x2,3"), "padding", [[0, 1], [2, 3]]),
        (("--dtype", "bfloat16"), "dtype", "bfloat16"),
        (("--activation", "relu6"), "activation", "relu6"),
        (("--bias",), "has_bias", True),
        (("--residual",), "has_residual", True),
        (("--precision", "tf32"), "precision", "tf32"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_explain_takes_conv2ds_parameters(options, field, wanted):
    assert json.loads(run(*CALL, *options, "--json"))["problem"][field] == wanted


def test_explain_takes_layouts():
    found = json.loads(
        run("explain", "--x", "1x9x8x6", "--w", "3x3x6x4", "--layout", "NHWC", "--weight-layout", "HWIO", "--json")
    )
    assert [found["problem"][axis] for axis in "NCHWKRS"] == [1, 6, 9, 8, 4, 3, 3]


@pytest.mark.parametrize("name", ["vgg16:3", "vgg16:64x112x112-128-3x3"])
def test_explain_takes_a_layer_of_a_known_network(name):
    for layout in ("NCHW", "NHWC"):
        problem = json.loads(run("explain", "--layer", name, "--layout", layout, "--json"))["problem"]
        assert [problem[axis] for axis in "NCHWKRS"] == [1, 64, 112, 112, 128, 3, 3]
        assert (problem["has_bias"], problem["layout"]) == (True, layout)


def test_a_layer_with_channels_last_is_explained_so():
    (name,) = [layer.name for layer in layers.layers("other_networks") if "-g32-NHWC" in layer.name]
    problem = json.loads(run("explain", "--layer", f"other_networks:{name}", "--json"))["problem"]
    assert (problem["layout"], problem["C"], problem["H"], problem["groups"]) == ("NHWC", 128, 56, 32)


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_90", "sm_120"])
def test_explain_answers_for_a_gpu_that_is_not_here(target):
    found = json.loads(run(*CALL, "--device", target, "--json"))
    major, minor = divmod(int(target.removeprefix("sm_")), 10)
    assert found["device"]["compute_capability"] == [major, minor]
    reasons = {candidate["name"]: candidate["verdict"] for candidate in found["candidates"]}
    assert reasons["numba_cpu.direct"] == "runs on cpu, the arrays are on cuda"


WRONG = {
    "x": (("explain", "--x", "1,64", "--w", "1x1x1x1"), "--x: sizes joined by x needed, as 1x64x56x56, got '1,64'"),
    "one shape": (
        ("explain", "--x", "1x1x5x5"),
        "--x and --w needed, as --x 1x64x56x56 --w 64x64x3x3, or --layer, as --layer vgg16:3",
    ),
    "both": ((*CALL, "--layer", "vgg16:1"), "--layer: it says --x and --w already; give one or the other"),
    "a layer's own stride": (
        ("explain", "--layer", "vgg16:1", "--stride", "2"),
        "--layer: it says --stride already; leave out --stride 2",
    ),
    "a layer's own groups": (
        ("explain", "--layer", "vgg16:1", "--groups", "3"),
        "--layer: it says --groups already; leave out --groups 3",
    ),
    "shape": (
        ("explain", "--x", "1x64", "--w", "64x64x3x3"),
        "x: 4 dimensions needed, (N, C, H, W), or 3 for one image, (C, H, W), got 2: (1, 64)",
    ),
    "stride": ((*CALL, "--stride", "2,1"), "--stride: a number or two joined by x needed, as 2 or 2x1, got '2,1'"),
    "stride 0": ((*CALL, "--stride", "0"), "stride: at least 1 and at most 2147483647 needed, got 0"),
    "padding": ((*CALL, "--padding", "1,2"), "--padding: top,bottom x left,right needed, as 0,1x0,1, got '1,2'"),
    "groups": ((*CALL, "--groups", "3"), "groups: must divide C = 64, got 3"),
    "backend": (
        (*CALL, "--backend", "opencl"),
        "backend: one of 'auto', 'numba_cpu', 'numba_cuda', 'cupy_raw' needed, got 'opencl'",
    ),
    "max_error": ((*CALL, "--max-error", "-1"), "max_error: a number above 0 needed, got -1.0"),
    "network": (
        ("explain", "--layer", "vgg19:1"),
        "network: one of article_mnist_cnn, resnet50, vgg16, mobilenet_v2, unet_same_256, other_networks needed, "
        "got 'vgg19'",
    ),
    "layer": (
        ("explain", "--layer", "article_mnist_cnn:4"),
        "layer: a number from 1 to 3 or a name needed after article_mnist_cnn:, got '4'; names: 1x28x28-32-3x3, "
        "32x13x13-64-3x3, 64x5x5-64-3x3",
    ),
    "device": (
        (*CALL, "--device", "sm_99"),
        "device: one of cpu, cuda:0, sm_75, sm_80, sm_86, sm_89, sm_90, sm_100, sm_120 needed, got 'sm_99'",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_end_in_one_line_and_code_2(arguments, message):
    assert run(*arguments, code=2) == f"Error: {message}\n"


def test_an_unknown_option_ends_in_code_2():
    assert "No such option" in run(*CALL, "--strides", "2", code=2)


def test_a_package_that_is_not_installed_is_named_in_one_line(monkeypatch):
    def not_there(*_):
        raise compiling.missing("cuda.bindings.nvrtc", "nvidia-cuda-nvrtc", "cuda13")

    monkeypatch.setattr(compiling, "through_nvrtc", not_there)
    output = run("profile", "--kernel", "cupy_raw.direct", "--x", "1x2x8x9", "--w", "2x2x2x7", code=2)
    assert output.startswith("Error: cuda.bindings.nvrtc: needed here")
    assert output.count("\n") == 1


def test_profile_counts_a_layer_of_a_network():
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")
    pytest.importorskip("cupy", reason="CuPy is not installed (extra cuda13)")
    text = run("profile", "--kernel", "cupy_raw.direct", "--layer", "vgg16:conv5_3", "--threads", "512")
    assert "conv2d_direct" in text
    assert "blocks" in text


def test_profile_counts_a_convolution_of_given_shapes():
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")
    pytest.importorskip("cupy", reason="CuPy is not installed (extra cuda13)")
    shapes = ("--x", "1x6x9x4", "--w", "4x1x3x3", "--groups", "4", "--stride", "2", "--padding", "1")
    text = run("profile", "--kernel", "cupy_raw.depthwise_weight_grad", *shapes, "--layout", "NHWC")
    assert "conv2d_depthwise_weight_grad" in text
    assert "weight_grad 1x4x6x9 -> 4, 3x3, stride (2, 2)" in text
