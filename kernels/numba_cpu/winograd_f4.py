"""Winograd F(4 x 4), for 3 x 3 and other windows and strides. Of 3 x 3, 144 multiplications become 36: error about that
of an ordinary blocked sum, twice the speed of F(2 x 2).

The algorithm is told and written in winograd.py.
"""

from functools import partial

from . import winograd

passes = winograd.passes
why_not = partial(winograd.why_not, 4)
workspace_bytes = partial(winograd.workspace_bytes, 4)
one_call_bytes = partial(winograd.one_call_bytes, 4)
packed_bytes = partial(winograd.packed_bytes, 4)
pack = partial(winograd.pack, 4)
predicted_seconds = partial(winograd.predicted_seconds, 4)
pack_seconds = partial(winograd.pack_seconds, 4)
job = partial(winograd.job, 4)
run = partial(winograd.run, 4)
