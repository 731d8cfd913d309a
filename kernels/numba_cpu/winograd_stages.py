"""What one thread of a Winograd convolution runs: spread, transform, multiply, transform, store. winograd.py has the
picture.

A strip is some tiles in the order image, row, column, at most STRIP_VECTORS vectors of them; it may begin and end
anywhere in a row of tiles. Its part of one row of tiles is a segment:

    x, one channel               spread over the lanes, a tile per lane (L1)       V: planes of the strip
    . . . . . . . .    masked    pixel 0,0 of each tile: segment 0 | segment 1     plane 0: channel 0: tiles 0 .. 48
    . a b c d e f .    loads,    pixel 0,1                       ...                        channel 1: ...
    . g h i j k l .   shuffles   ...                                               plane 1
    . . . . . . . .              the last pixel                                    ...

A plane of V holds, for a stride, a channel of each phase after another: their products are one sum. By phases (Tile in
winograd_matrices.py) it holds all channels of a phase, then those of the next, which take their filters from different
places.

The masks make padding, odd sizes and ends of rows a matter of lanes that stay zero. What does not lie side by side in x
as float32 or float64 (NHWC, 16-bit numbers, odd strides) is copied to a staging area first, with zeros around it.

    M: sums of a strip           outputs of up to 8 tiles in a row (L1)            y, NCHW
    plane 0: filters 0 .. 15:    row 0: pixel 0: filters 0 .. 15, pixel 1, ...     filter 0: row 0: pixel 0, 1, ...
      tile 0, tile 1, ...        ...                                   transposed           ...
    plane 1 ...                  row m-1                                           filter 1: ...

Or each lane is a channel (winograd_input_channels.py).

Channels are spread several at a time and then transformed: a load of what was stored just before, by stores of another
place, would wait for them.
"""

from numba import types

from .compilation import inlined
from .vectors import array_at, record_at
from .winograd_filters import transform_filters_function
from .winograd_record import RECORD, call_leaf


def build(real_name):
    """The task: a run of strips and a part of the filters of one group, from x to y.

    Filters that are packed come with all their channels; a run is one strip then. Others are transformed here, as many
    filters and channels at a time as stay in the cache, for all strips of the run.
    """
    transform_filters = transform_filters_function(real_name)

    @inlined
    def taps_ahead(call, group, panel, end, c):
        """Where the taps begin that are transformed after those of `panel` and channel c; 0 where a filter's do not lie
        together, or none follow.
        """
        c += call.depth_step
        if c >= call.Cg:
            c, panel = 0, panel + call.chunk
        if panel >= end or call.w_c != call.R * call.S * abs(call.w_s):
            return 0
        return call.w + (group * call.Kg + panel * call.panel) * call.w_k + c * call.w_c

    def winograd(call_address, index, worker):
        call = record_at(RECORD, call_address)
        scratch = call.workspace + worker * call.worker_bytes
        run, rest = index % call.runs, index // call.runs
        part, group = rest % call.parts, rest // call.parts
        begin, end = part * call.part, min((part + 1) * call.part, call.panels)
        first, behind = run * call.strips // call.runs, (run + 1) * call.strips // call.runs
        for panel in range(begin, end, call.chunk):
            count, k = min(call.chunk, end - panel), group * call.Kg + panel * call.panel
            filters = min(count * call.panel, call.Kg - panel * call.panel)
            for c in range(0, call.Cg, call.depth_step):
                weights, at = call.w + group * call.filter_group, panel
                if call.filters_at:
                    weights, at = scratch + call.filters_at, 0
                    transform_filters(call_address, scratch, k, filters, c, weights, 0)
                for strip in range(first, behind):
                    inputs = scratch + call.inputs_at + (strip - first) * call.input_slot
                    outputs = scratch + call.outputs_at + (strip - first) * call.output_slot
                    if panel == begin and c == 0:
                        call_leaf(call.input_stage, call_address, scratch, group, strip, inputs, 0, 0, 0)
                        call_leaf(call.tile_lists, call_address, strip, inputs + call.tiles_at, 0, 0, 0, 0, 0)
                    soon = array_at(types.int64, inputs + call.soon_at, (1,), (8,))
                    last = call.filters_at and strip == behind - 1
                    soon[0] = taps_ahead(call, group, panel, end, c) if last else 0
                    call_leaf(call.multiply_stage, call_address, weights, at, at + count, strip, inputs, outputs, c)
                    if c + call.depth_step >= call.Cg:
                        call_leaf(call.output_stage, call_address, scratch, strip, k, filters, outputs, 0, 0)

    return winograd
