"""Taps of a window that meet nothing but padding are left out before a kernel is chosen.

    4 columns, padding 6, dilation 6      . . . . . .[x x x x]. . . . . .
    the first output's three taps         ^           ^           ^          the last one's are 3 further right

The outer taps meet zeros for every output, so that the window is 1 wide and needs no padding: 3 x 3 with padding 18
and dilation 18 on a map of 14 x 14, as dilated heads have it on small images, is a 1 x 1. Only whole rows and columns
of the window, at its ends, are left out.
"""

from __future__ import annotations

from dataclasses import replace

ALL = slice(None)


def without_padding_taps(problem, algorithm="auto"):
    """(the problem with the smaller window, the part of w that it takes), or the problem itself and None: also where
    the caller forces an algorithm, which is then given what was asked for.
    """
    if not (isinstance(algorithm, str) and algorithm == "auto"):
        return problem, None
    sizes, windows = (problem.H, problem.W), (problem.R, problem.S)
    kept = [
        taps_that_meet(*axis)
        for axis in zip(sizes, windows, problem.stride, problem.padding, problem.dilation, (problem.P, problem.Q))
    ]
    if kept == [(0, problem.R), (0, problem.S)]:
        return problem, None
    padding = tuple(
        (before - first * step, after - (taps - end) * step)
        for (first, end), taps, (before, after), step in zip(kept, windows, problem.padding, problem.dilation)
    )
    R, S = (end - first for first, end in kept)
    return replace(problem, R=R, S=S, padding=padding), (ALL, ALL, *(slice(*part) for part in kept))


def taps_that_meet(size, taps, stride, padding, dilation, outputs) -> tuple[int, int]:
    """(first, end) of an axis's taps without those at its ends that meet none of x; padding must hold these."""
    before, after = padding

    def meets(tap):
        at = tap * dilation - before  # of the first output
        output = max(0, -(at // stride))
        return output < outputs and at + output * stride < size

    first, end = 0, taps
    while first < end - 1 and (first + 1) * dilation <= before and not meets(first):
        first += 1
    while first < end - 1 and (taps - end + 1) * dilation <= after and not meets(end - 1):
        end -= 1
    return first, end
