"""Winograd F(3 x 3, 3 x 3) with a stride of 2: 81 multiplications become 49; for outputs of 14 x 14, 5 tiles with 33
products a line where F(2) and F(4) have 35, and of 9 or 18.

The algorithm is told and written in winograd.py.
"""

from functools import partial

from . import winograd

passes = winograd.passes
why_not = partial(winograd.why_not, 3)
workspace_bytes = partial(winograd.workspace_bytes, 3)
one_call_bytes = partial(winograd.one_call_bytes, 3)
packed_bytes = partial(winograd.packed_bytes, 3)
pack = partial(winograd.pack, 3)
predicted_seconds = partial(winograd.predicted_seconds, 3)
pack_seconds = partial(winograd.pack_seconds, 3)
job = partial(winograd.job, 3)
run = partial(winograd.run, 3)
