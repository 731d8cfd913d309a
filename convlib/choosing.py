"""Which kernel runs a problem: of those that can (dispatch.py) the fastest predicted, or measured (measuring.py); on a
GPU one that is verified (trust.py).
"""

from __future__ import annotations

from functools import lru_cache

from . import accuracy, dispatch, measuring
from .device import Device
from .problem import ConvProblem


def choose(
    problem: ConvProblem,
    device: Device,
    backend: str = "auto",
    algorithm: str = "auto",
    max_error: float = accuracy.DEFAULT_MAX_ERROR,
    workspace_limit: int | None = None,
) -> str | None:
    """The name of the kernel that `chosen` would find if every unverified one is right; None if none is left."""
    arguments = dispatch.checked_choice(problem, device, backend, algorithm, max_error, workspace_limit)
    names = dispatch.ranked(*arguments)
    if not device.is_gpu:
        return names[0]
    from . import trust  # which imports what `import convlib` should not

    return trust.first_expected(names, problem, device)


def chosen(
    problem: ConvProblem,
    device: Device,
    backend: str = "auto",
    algorithm: str = "auto",
    max_error: float = accuracy.DEFAULT_MAX_ERROR,
    workspace_limit: int | None = None,
    planned: bool = False,
    tune: bool = False,
) -> dispatch.Chosen:
    """The kernel to run: the fastest predicted among those that can, were asked for and, on a GPU, are verified.

    planned: its weights will be packed once for many calls. tune: the fastest measured (measuring.py).

    Raises ValueError for an unknown backend or algorithm, TypeError or ValueError for a wrong max_error or
    workspace_limit, and UnsupportedError, with every reason, when no kernel can run.
    """
    asked = dispatch.checked_choice(problem, device, backend, algorithm, max_error, workspace_limit)
    return settled_choice(*asked, planned, tune)


@lru_cache(maxsize=4096)
def settled_choice(problem, device, backend, algorithm, max_error, workspace_limit, planned, tune):
    names = dispatch.ranked(problem, device, backend, algorithm, max_error, workspace_limit, planned)
    problem = dispatch.with_an_image(problem)
    if tune:
        names = measuring.fastest_first(names, problem, device, planned)
    name = names[0]
    if device.is_gpu:
        from . import trust  # which imports what `import convlib` should not

        name = trust.first_believed(names, problem, device)
    return dispatch.as_chosen(name, problem, device, planned)
