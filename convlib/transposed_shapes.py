"""The shape of what a transposed convolution makes, and the padding of the convolution that it is the transpose of."""

from __future__ import annotations

from .operands import FROM_LAYOUT, FROM_WEIGHT_LAYOUT
from .problem import check_choice, integer, pair, resolved_padding, same_padding


def transposed_shape(x_shape, w_shape, layout, weight_layout, stride, padding, output_padding, dilation, groups):
    """The shape of a transposed convolution's result, in `layout`'s order, and its padding in full."""
    check_choice("layout", layout, tuple(FROM_LAYOUT))
    check_choice("weight_layout", weight_layout, tuple(FROM_WEIGHT_LAYOUT))
    if len(w_shape) != 4:
        raise ValueError(f"w: 4 dimensions needed ({', '.join(weight_layout)}), got {len(w_shape)}: {tuple(w_shape)}")
    N, C, H, W = (x_shape[axis] for axis in FROM_LAYOUT[layout])
    O, I, R, S = (w_shape[axis] for axis in FROM_WEIGHT_LAYOUT[weight_layout])  # noqa: E741
    groups = integer("groups", groups, least=1)
    if O != C:
        raise ValueError(f"w: along O of {weight_layout} it must have x's C = {C}, got {O}")
    if min(H, W, *w_shape) < 1:
        raise ValueError(f"x, w: sizes of at least 1 needed, got {tuple(x_shape)} and {tuple(w_shape)}")
    stride, dilation = pair("stride", stride, least=1), pair("dilation", dilation, least=1)
    extra = pair("output_padding", output_padding, least=0)
    for axis in (0, 1):
        if extra[axis] >= max(stride[axis], dilation[axis]):
            raise ValueError(
                f"output_padding: less than stride or dilation needed, got {extra[axis]} with stride {stride[axis]} "
                f"and dilation {dilation[axis]}"
            )
    sizes, padding = zip(
        *(
            transposed_axis(size, window, stride[axis], padding, extra[axis], dilation[axis], axis)
            for axis, (size, window) in enumerate(((H, R), (W, S)))
        ),
        strict=True,
    )
    shape = {"N": N, "C": I * groups, "H": sizes[0], "W": sizes[1]}
    return tuple(shape[letter] for letter in layout), padding


def transposed_axis(size, window, stride, padding, extra, dilation, axis):
    """How long a transposed convolution's result is along one axis, and its padding there."""
    if padding == "same":
        return size * stride, same_padding(size * stride, window, stride, dilation)
    before, after = resolved_padding(padding, (0, 0), (0, 0), (1, 1), (1, 1))[axis]
    length = (size - 1) * stride - before - after + dilation * (window - 1) + extra + 1
    if length < 1:
        raise ValueError(
            f"padding: it leaves {length} {('rows', 'columns')[axis]} of the result; at most "
            f"{before + after + length - 1} in all possible, got {before + after}"
        )
    return length, (before, after)
