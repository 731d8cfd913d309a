"""Plans for GPGPU-Sim: a stand-in for its host program replays them in our emulator."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import simulated_cycles
from convlib import layers
from convlib.kernels.cupy_raw import implicit_gemm
from convlib.kernels.cupy_raw.cut import split_cut
from convlib.problem import make_problem

HOST = """#!{python}
import sys
from pathlib import Path

import numpy as np

from convlib import emulator

memory, texts = {{}}, []
lines = iter(Path("plan").read_text().split("\\n"))


def argument(text):
    if text[0] == "v":
        return np.frombuffer(bytes.fromhex(text[1:]), f"V{{len(text) // 2}}")[0]
    name, offset = text[1:].split(":")
    return memory[name][int(offset):]


for line in lines:
    step, *words = line.split() or [""]
    if step == "buffer":
        held = np.fromfile(words[1], np.uint8)
        memory[words[0]] = np.zeros(held.size + 256, np.uint8)
        memory[words[0]] = memory[words[0]][-memory[words[0]].ctypes.data % 256:][:held.size]
        memory[words[0]][...] = held
    elif step == "ptx":
        texts.append(Path(words[0]).read_text())
    elif step == "launch":
        numbers = [int(word) for word in words[1:]]
        arguments = tuple(argument(next(lines)) for _ in range(numbers[7]))
        text = next(text for text in texts if f".entry {{words[0]}}(" in text)
        emulator.launch(text, words[0], tuple(numbers[:3]), tuple(numbers[3:6]), arguments, numbers[6], checks=False)
        print(f"kernel_name = {{words[0]}} \\nx\\ngpu_sim_cycle = {{5000 + numbers[0]}}\\ngpu_sim_insn = 1")
    elif step == "read":
        memory[words[0]].tofile(words[1])
"""


@pytest.fixture
def stand_in(tmp_path):
    """A host program and a config."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")
    host, config = tmp_path / "host", tmp_path / "gpgpusim.config"
    host.write_text(HOST.format(python=sys.executable))
    host.chmod(0o755)
    config.write_text("-gpgpu_n_clusters 30\n")
    return host, config


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_plan_holds_all_that_its_launches_need(stand_in, tmp_path, layout):
    problem = replace(make_problem((1, 3, 5, 6), (4, 3, 3, 3), padding=1, dtype="float32"), layout=layout)
    found = simulated_cycles.ours("cupy_raw.direct", problem, *stand_in, tmp_path / "plan")
    assert found.error < 1e-6
    (launch,) = found.launches
    assert (launch.function, launch.cycles) == ("conv2d_direct", launch.blocks)
    assert found.share == problem.macs / (64 * 30 * launch.cycles)


def test_arrays_in_one_memory_share_a_buffer(tmp_path):
    plan, memory = simulated_cycles.Plan(tmp_path), np.arange(64, dtype=np.float32)
    (first, at_first), (second, at_second) = (plan.place(part).split(":") for part in (memory[:8], memory[8:]))
    assert first == second
    assert int(at_second) - int(at_first) == 32
    assert int(at_first) == memory.ctypes.data % 256
    assert len(plan.lines) == 1


def test_sentinels_become_places():
    base, apart = simulated_cycles.SENTINEL, simulated_cycles.SENTINELS_APART
    values = np.array([7, base + apart, base, base + 3 * apart, base + 1], np.uint64).tobytes()
    assert simulated_cycles.addresses_in(values, ["x:0", "w:16", "y:0"]) == "@8=w:16@16=x:0"


def test_launches_are_read_from_a_log():
    plan = ["launch f 2 3 1 32 1 1 0 0", "launch g 4 1 1 32 1 1 0 0"]
    log = "kernel_name = f \nx\ngpu_sim_cycle = 5100\ngpu_tot_sim_cycle = 1\nkernel_name = g \ngpu_sim_cycle = 6000\n"
    found = simulated_cycles.launches_in(log, plan)
    assert [(launch.function, launch.blocks, launch.cycles) for launch in found] == [("f", 6, 100), ("g", 4, 1000)]
    with pytest.raises(ValueError, match="log: the launches"):
        simulated_cycles.launches_in(log, plan[:1])


def test_what_cannot_run_is_named(stand_in, tmp_path):
    problem = make_problem((1, 3, 5, 6), (4, 3, 3, 3), dtype="float32", stride=2)
    with pytest.raises(ValueError, match="winograd_fused cannot run"):
        simulated_cycles.ours("cupy_raw.winograd_fused", problem, *stand_in, tmp_path / "plan")


def test_ours_stands_beside_the_fastest_of_cutlass_on_its_layer():
    problem = make_problem((1, 3, 5, 6), (4, 3, 3, 3), dtype="float32")

    def row(name, layer, cycles):
        return name, layer, simulated_cycles.Simulated(problem, (simulated_cycles.Launched("f", 2, cycles),), None)

    found = [row("CUTLASS 64x64", "a", 300), row("CUTLASS 128x64", "a", 200), row("CUTLASS 128x64", "b", 50),
             row("cupy_raw.implicit_gemm", "a", 150), row("cupy_raw.depthwise", "c", 70)]  # fmt: skip
    drawn = simulated_cycles.table(found)
    (beside,) = [column for column in drawn.columns if column.header == "of CUTLASS's fastest"]
    assert list(beside.cells) == ["1.50", "1.00", "1.00", "0.75", ""]


def test_a_part_of_the_channels_must_be_whole():
    problem = make_problem((1, 12, 5, 6), (4, 12, 3, 3), dtype="float32")
    assert simulated_cycles.part_of(problem, 3, 4).x_shape == (3, 3, 5, 6)
    with pytest.raises(ValueError, match="part: a divisor of 12 channels in one group needed, got 5"):
        simulated_cycles.part_of(problem, 1, 5)


def test_few_tiles_are_split_where_sums_pass_slowly_from_launch_to_launch():
    """All of 224 in two splits took 33,000 cycles, 14 of them 25,100, none 18,700, launches counted; CUTLASS 27,700."""
    layer = layers.layer_called("resnet50:512x28x28-1024-1x1/2").problem
    problem = simulated_cycles.part_of(layer, images=1, part=16)
    cut = implicit_gemm.cut_for(problem, simulated_cycles.PLACE)
    assert cut.split_tiles < 20
    whole = implicit_gemm.cut_of(problem, cut.tile)
    predicted = [implicit_gemm.seconds(problem, simulated_cycles.PLACE, c) for c in (split_cut(whole, 2), cut, whole)]
    assert predicted == sorted(predicted, reverse=True)
    assert predicted[0] > 1.4 * predicted[2]
