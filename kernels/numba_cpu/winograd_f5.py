"""Winograd F(5 x 5, 3 x 3): 225 multiplications become 49, at twice the rounding error of F(4 x 4): for maps of
14 x 14, 3 tiles with 20 products a line where F(4) and F(6) have 22, and of 20, 28 of 30, or 40 x 40.

The algorithm is told and written in winograd.py.
"""

from functools import partial

from . import winograd

passes = winograd.passes
why_not = partial(winograd.why_not, 5)
workspace_bytes = partial(winograd.workspace_bytes, 5)
one_call_bytes = partial(winograd.one_call_bytes, 5)
packed_bytes = partial(winograd.packed_bytes, 5)
pack = partial(winograd.pack, 5)
predicted_seconds = partial(winograd.predicted_seconds, 5)
pack_seconds = partial(winograd.pack_seconds, 5)
job = partial(winograd.job, 5)
run = partial(winograd.run, 5)
