"""Winograd F(6 x 6, 3 x 3): 324 multiplications become 64, at 4 times the rounding error of F(4 x 4).

The algorithm is told and written in winograd.py.
"""

from functools import partial

from . import winograd

passes = winograd.passes
why_not = partial(winograd.why_not, 6)
workspace_bytes = partial(winograd.workspace_bytes, 6)
one_call_bytes = partial(winograd.one_call_bytes, 6)
packed_bytes = partial(winograd.packed_bytes, 6)
pack = partial(winograd.pack, 6)
predicted_seconds = partial(winograd.predicted_seconds, 6)
pack_seconds = partial(winograd.pack_seconds, 6)
job = partial(winograd.job, 6)
run = partial(winograd.run, 6)
