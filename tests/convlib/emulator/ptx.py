"""Small PTX kernels for the tests: one instruction on arrays, one thread per element."""

from __future__ import annotations

import numpy as np

from convlib import emulator
from convlib.emulator.syntax import SIZES

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
LOADED_AS = {1: "u8", 2: "b16", 4: "b32", 8: "b64"}
THREADS = 128


def kernel(body, parameters, registers=""):
    """A kernel `k` with pointer parameters p0, p1, ...; %t is the thread's index in the grid."""
    declared = ", ".join(f".param .u64 p{i}" for i in range(parameters))
    return f"""{HEADER}
.visible .entry k({declared})
{{
.reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<30>; .reg .b64 %d<30>; .reg .f32 %f<9>; .reg .f64 %g<9>; {registers}
mov.u32 %r20, %tid.x; mov.u32 %r21, %ctaid.x; mov.u32 %r22, %ntid.x;
mad.lo.s32 %r23, %r21, %r22, %r20;
{body}
ret;
}}
"""


def address(parameter, size):
    """%d20 = p[parameter] + size * thread"""
    return f"ld.param.u64 %d20, [p{parameter}]; mul.wide.u32 %d21, %r23, {size}; add.s64 %d20, %d20, %d21;"


def register(type_, number):
    if type_ == "pred":
        return f"%p{number}"
    return f"%{ {1: 'h', 2: 'h', 4: 'r', 8: 'd'}[SIZES[type_]] }{number}"


def run_opcode(instruction, result, *inputs):
    """Execute `instruction`, with D for the result and A, B, C for the inputs, on every element.

    result: the result's PTX type. inputs: pairs (type, bits as a list of ints), all of one length. Returns the bits.
    """
    count = len(inputs[0][1])
    lines, arrays = [], []
    names = {"D": register(result, 8)}
    for i, (type_, bits) in enumerate(inputs):
        names["ABC"[i]] = register(type_, i)
        size = 1 if type_ == "pred" else SIZES[type_]
        arrays.append(np.array(bits, np.uint64).astype(f"u{size}"))
        loaded = "%h7" if type_ == "pred" else register(type_, i)
        lines.append(f"{address(i, size)} ld.global.{LOADED_AS[size]} {loaded}, [%d20];")
        if type_ == "pred":
            lines.append(f"setp.ne.b16 %p{i}, %h7, 0;")
    words = [names.get(word, word) for word in tokens(instruction)]
    size = 4 if result == "pred" else SIZES[result]
    arrays.append(np.zeros(count, f"u{size}"))
    value = register("u32", 9) if result == "pred" else register(result, 8)
    chosen = "selp.u32 %r9, 1, 0, %p8;" if result == "pred" else ""
    store = f"{address(len(inputs), size)} st.global.{LOADED_AS[size]} [%d20], {value};"
    text = kernel("\n".join([*lines, "".join(words) + ";", chosen, store]), len(arrays))
    padded = [np.resize(a, -(-count // THREADS) * THREADS) for a in arrays]
    report = emulator.launch(text, "k", len(padded[0]) // THREADS, THREADS, tuple(padded))
    report.raise_if_faulty()
    return [int(v) for v in padded[-1][:count]]


def tokens(instruction):
    """The instruction cut so that the letters A, B, C, D that stand alone can be replaced."""
    words, word = [], ""
    for letter in instruction:
        if letter.isalnum() or letter in "._%":
            word += letter
        else:
            words += [word, letter]
            word = ""
    return [*words, word]
