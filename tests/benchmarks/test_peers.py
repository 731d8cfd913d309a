"""Every installed peer computes the same convolution as we do, on every kind of layer in the tables."""

import pytest

from benchmarks import cases, gate, peers
from benchmarks.candidate import CannotRun
from convlib.problem import make_problem

LAYERS = {
    "first layer": ((1, 3, 33, 31), (16, 3, 7, 7), {"stride": 2, "padding": 3}),
    "3x3": ((1, 16, 13, 15), (24, 16, 3, 3), {"padding": 1, "has_bias": True}),
    "1x1": ((1, 24, 9, 11), (40, 24, 1, 1), {"has_bias": True}),
    "strided 1x1": ((1, 8, 12, 12), (16, 8, 1, 1), {"stride": 2}),
    "depthwise": ((1, 16, 14, 14), (16, 1, 3, 3), {"groups": 16, "stride": 2, "padding": 1}),
    "window and dilation of two sizes": ((1, 4, 19, 23), (8, 4, 3, 5), {"dilation": (2, 1), "padding": (2, 1)}),
    "few filters": ((1, 16, 16, 16), (2, 16, 1, 1), {}),
}


def run(name, suite, case, threads=2):
    _, make = peers.of_suite(suite)[name]
    if name in peers.missing(suite):
        pytest.skip(f"{peers.missing(suite)[name]} is not installed")
    operands = cases.operands(case)
    candidate = make(case, operands, threads)
    assert candidate.name == name
    return gate.check(candidate, gate.exact(case, operands))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", peers.LAYER_PEERS)
def test_layer_peers_compute_the_layer(name, layer):
    x, w, keywords = LAYERS[layer]
    case = cases.Case("any", layer, make_problem(x, w, "float32", **keywords))
    error = run(name, "any", case)
    assert error < 1e-3 if name == "MNN" else error < 5e-6


@pytest.mark.parametrize("gradient", cases.GRADIENTS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", peers.GRADIENT_PEERS)
def test_gradient_peers_compute_the_gradient(name, layer, gradient):
    x, w, keywords = LAYERS[layer]
    problem = make_problem(x, w, "float32", pass_=cases.GRADIENTS[gradient], **keywords)
    assert run(name, f"any-{gradient}", cases.Case(f"any-{gradient}", layer, problem)) < 5e-6


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("window", [3, 11])
@pytest.mark.parametrize("name", peers.FILTER_PEERS)
def test_filter_peers_compute_the_filter(name, window, channels, monkeypatch):
    monkeypatch.setitem(cases.IMAGE_SIZES, "small", (45, 61))
    assert run(name, cases.FILTERS, cases.filter_case("small", channels, window)) < 5e-6


def test_a_peer_says_what_it_cannot_run():
    pytest.importorskip("torch")
    problem = make_problem((1, 1, 5, 5), (1, 1, 3, 3), "float32", padding=((1, 0), (0, 0)))
    case = cases.Case("any", "asymmetric", problem)
    with pytest.raises(CannotRun, match="the same on both sides"):
        peers.pytorch(case, cases.operands(case), 1)


def test_missing_peers_are_named_with_what_they_lack(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name in ("onnx", "ncnn") else object())
    assert peers.missing("vgg16") == {
        "ONNX Runtime": "onnx",
        "OpenVINO": "onnx",
        "ncnn": "ncnn",
        "OpenCV dnn": "onnx",
        "MNN": "onnx",
    }
    assert peers.missing(cases.FILTERS) == {}
