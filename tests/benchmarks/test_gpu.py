"""What can be tried of the GPU's side without one: that it says so, and that its cuDNN graphs are the cases."""

import contextlib
import json
import sys
import types

import pytest
from click.testing import CliRunner

from benchmarks import cases, counted, gpu, layer_child, nvidia_card, ours, rehearsal
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
    monkeypatch.setattr("benchmarks.measuring.run_cpu", lambda **chosen: seen.append(chosen))
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


def test_a_visits_bench_has_the_cards_facts_its_batch_and_every_candidate(monkeypatch):
    place = ours.Place(rehearsal.as_the_model_sees_it(), None, None)
    stand_ins = {
        "place": lambda: place, "peaks": lambda: rehearsal.PEAKS, "driver": lambda: "580", "free_bytes": lambda: 140e9,
        "makers": lambda: {"cuDNN NCHW heuristic": None},
    }  # fmt: skip
    for name, function in stand_ins.items():
        monkeypatch.setattr(gpu, name, function)
    monkeypatch.setattr(nvidia_card, "facts", lambda: {"name": "H200"})
    monkeypatch.setattr("convlib.machine.installed", lambda package: True)
    monkeypatch.setattr("convlib.trust.is_here", lambda place: False)
    bench, case = layer_child.on_gpu(), cases.cases("vgg16")[1]
    assert bench.about() == {"peaks": rehearsal.PEAKS, "driver": "580", "card": {"name": "H200"}}
    assert bench.case(case).problem.N == 32
    assert bench.case(case).name == f"32x{case.name}"
    assert {ours.PLAN, ours.CONV2D, "cupy_raw.implicit_gemm", "cuDNN NCHW heuristic"} <= set(bench.makers(case))
    assert (bench.block, bench.exact, bench.clean) == (gpu.event_block, gpu.exact, gpu.give_memory_back)


def test_ncu_sees_one_call_after_the_one_that_compiles(monkeypatch):
    done = []
    stream = contextlib.nullcontext()
    stream.synchronize = lambda: done.append("wait")
    runtime = types.SimpleNamespace(
        profilerStart=lambda: done.append("start"), profilerStop=lambda: done.append("stop")
    )
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime)))
    monkeypatch.setattr(gpu, "stream", lambda: stream)
    monkeypatch.setattr(gpu, "place", lambda: None)

    def plan(case, operands, place, name, kernel):
        done.append((str(case), operands.x.shape, name, kernel))
        return types.SimpleNamespace(call=lambda: done.append("call"))

    monkeypatch.setattr(ours, "plan", plan)
    counted.main("cupy_raw.tiled", "article_mnist_cnn", "2x64x5x5-64-3x3")
    assert done == [
        ("article_mnist_cnn:2x64x5x5-64-3x3", (2, 64, 5, 5), "cupy_raw.tiled", "cupy_raw.tiled"),
        "call", "wait", "start", "call", "wait", "stop",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pass_", "node", "operands"),
    [("input_grad", "CONV_DGRAD", {"grad_y", "w"}), ("weight_grad", "CONV_WGRAD", {"grad_y", "x"})],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_gradient_has_its_own_node_operands_and_result(pass_, node, operands, channels_last):
    problem = make_problem((2, 6, 9, 8), (4, 3, 3, 2), "float32", padding=((1, 0), (2, 3)), groups=2, pass_=pass_)
    graph, tensors = graph_of(problem, channels_last)
    assert [n["type"] for n in graph["nodes"]] == [node]
    assert graph["nodes"][0]["params"]["post_padding"] == [0, 3]
    assert set(tensors) == operands | {"y"}
    assert list(tensors["y"].get_dim()) == list(problem.operand_shapes[2])
    assert list(tensors["y"].get_stride()) == gpu.strides(problem.operand_shapes[2], channels_last)
