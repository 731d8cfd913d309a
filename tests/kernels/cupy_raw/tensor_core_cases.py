"""Small problems for the tensor cores' kernels: how arrays lie, types, cuts as a test wants them."""

from dataclasses import replace

from convlib.kernels.cupy_raw import tensor_core
from convlib.verification.problems import Case

# Each way in which x and y can lie, on problems that stick out of a tile of pixels, of filters and of a stage.
LYING = {
    "copied": Case("copied", (2, 9, 11, 40), (48, 40, 3, 3), {"padding": 1, "layout": "NHWC"}, bias=True,
                   residual=True, dtype="float16"),
    "copied_odd_filters": Case("copied_odd_filters", (2, 9, 10, 48), (70, 24, 3, 2), {"layout": "NHWC", "groups": 2,
                               "stride": (1, 2)}, bias=True, dtype="float16"),
    "gathered": Case("gathered", (2, 20, 8, 10), (70, 20, 3, 3), {"padding": 1}, bias=True, residual=True,
                     dtype="float16"),
    "gathered_whole": Case("gathered_whole", (2, 48, 7, 9), (34, 24, 3, 3), {"groups": 2, "dilation": (2, 3),
                           "padding": 1}, bias=True, residual=True, dtype="float16", memory="slices"),
    "gathered_last": Case("gathered_last", (2, 9, 11, 21), (34, 21, 3, 3), {"padding": 2, "layout": "NHWC"},
                          residual=True, dtype="float16"),
    "copied_stages": Case("copied_stages", (1, 7, 9, 32), (34, 32, 3, 3), {"padding": 1, "layout": "NHWC"},
                          dtype="float16"),
    "gathered_stages": Case("gathered_stages", (1, 64, 8, 9), (34, 64, 3, 2), {"padding": 1}, dtype="float16"),
    "taps": Case("taps", (2, 3, 12, 11), (35, 3, 5, 5), {"padding": (4, 6), "stride": 2, "dilation": (2, 3)}, bias=True,
                 dtype="float16"),
}  # fmt: skip
EXPECTED = {
    "copied": tensor_core.Lying(True, True, 8),
    "copied_odd_filters": tensor_core.Lying(True, True, 1),
    "gathered": tensor_core.Lying(False, False, 8),
    "gathered_whole": tensor_core.Lying(False, False, 1),
    "gathered_last": tensor_core.Lying(False, True, 1),
    "copied_stages": tensor_core.Lying(True, True, 1),
    "gathered_stages": tensor_core.Lying(False, False, 8),
    "taps": tensor_core.Lying(False, False, 1),
}
TYPES = {"float16": {}, "bfloat16": {}, "tf32": {"precision": "tf32"}, "3xtf32": {"precision": "3xtf32"}}


def of_type(case, type_):
    """`case` in one of TYPES."""
    dtype = "float32" if "tf32" in type_ else type_
    return replace(case, dtype=dtype, keywords={**case.keywords, **TYPES[type_]})


def force_cut(monkeypatch, problem, tile, splits=1, whole=0):
    cut = tensor_core.cut_of(problem, tile, splits, whole)
    monkeypatch.setattr(tensor_core, "cut_for", lambda problem, device: cut)
    return cut
