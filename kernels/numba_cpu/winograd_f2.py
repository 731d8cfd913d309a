"""Winograd F(2 x 2, 3 x 3): 36 multiplications become 16, with a stride of 2 they become 25; the most accurate, and
right for small maps (7 x 7), where larger tiles stick out.

The algorithm is told and written in winograd.py.
"""

from functools import partial

from . import winograd

passes = winograd.passes
why_not = partial(winograd.why_not, 2)
workspace_bytes = partial(winograd.workspace_bytes, 2)
one_call_bytes = partial(winograd.one_call_bytes, 2)
packed_bytes = partial(winograd.packed_bytes, 2)
pack = partial(winograd.pack, 2)
predicted_seconds = partial(winograd.predicted_seconds, 2)
pack_seconds = partial(winograd.pack_seconds, 2)
job = partial(winograd.job, 2)
run = partial(winograd.run, 2)
