"""What can be tried of the GPU's side without one: that it says so, and that its cuDNN graphs are the cases."""

import json

import pytest
from click.testing import CliRunner

from benchmarks import cases, gpu
from benchmarks.__main__ import main
from convlib.problem import make_problem


def graph_of(problem, channels_last=False, tf32=True):
    pytest.importorskip("cudnn")
    graph, tensors = gpu.cudnn_graph(cases.Case("any", "any", problem), channels_last, tf32, handle=None)
    return json.loads(str(graph)), tensors


def test_without_a_gpu_the_command_says_why(monkeypatch):
    monkeypatch.setattr(gpu, "unavailable", lambda: "no CUDA device is visible")
    done = CliRunner().invoke(main, ["gpu"])
    assert done.exit_code == 1
    assert "no GPU to measure on: no CUDA device is visible" in done.output


def test_without_a_gpu_the_easy_door_leads_to_the_cpu(monkeypatch):
    seen = []
    monkeypatch.setattr("benchmarks.__main__.run_cpu", lambda **chosen: seen.append(chosen))
    monkeypatch.setattr(gpu, "unavailable", lambda: "none")
    assert CliRunner().invoke(main, ["--quick"]).exit_code == 0
    assert seen[0]["quick"] is True


def test_the_graph_has_the_cases_sizes_and_parameters():
    problem = make_problem((2, 6, 9, 8), (4, 3, 3, 2), "float32", stride=(2, 1), padding=((1, 0), (2, 3)), groups=2)
    graph, tensors = graph_of(problem)
    parameters = graph["nodes"][0]["params"]
    assert parameters == {"pre_padding": [1, 2], "post_padding": [0, 3], "stride": [2, 1], "dilation": [1, 1]}
    assert graph["tensors"]["x"]["dim"] == [2, 6, 9, 8]
    assert graph["tensors"]["w"]["dim"] == [4, 3, 3, 2]  # fewer channels than x has: cuDNN's way to say groups
    assert list(tensors["y"].get_dim()) == list(problem.y_shape)


def test_a_bias_is_one_more_node():
    problem = make_problem((1, 3, 5, 5), (4, 3, 3, 3), "float32", has_bias=True)
    graph, tensors = graph_of(problem)
    assert [node["type"] for node in graph["nodes"]] == ["CONV_FPROP", "POINTWISE"]
    assert graph["tensors"]["bias"]["dim"] == [1, 4, 1, 1]
    assert set(tensors) == {"x", "w", "bias", "y"}


def test_the_layout_is_in_the_strides():
    problem = make_problem((1, 3, 5, 7), (4, 3, 3, 3), "float32")
    assert graph_of(problem)[0]["tensors"]["x"]["stride"] == [105, 35, 7, 1]
    assert graph_of(problem, channels_last=True)[0]["tensors"]["x"]["stride"] == [105, 1, 21, 3]
