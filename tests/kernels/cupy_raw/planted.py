"""Bugs for the emulator to find: a kernel's PTX without a wait, a fence or a barrier."""

import re

from convlib import emulator

BARRIER = r"(?m)^\s*(?:bar|barrier)\.sync.*$"


def plant(monkeypatch, function, what, which=None, of=None, instead=""):
    """Have the emulator run the kernel `function` with what matches `what` in its PTX replaced, by nothing else.

    which: number of the one match to replace, or None for all of them. of: how many there must be.
    """
    right = emulator.ptx_of_source

    def wrong(source, target):
        text = right(source, target)
        if source.function != function:
            return text
        found = list(re.finditer(what, text))
        assert found
        assert of in (None, len(found))
        for match in reversed(found if which is None else [found[which]]):
            text = text[: match.start()] + instead + text[match.end() :]
        return text

    monkeypatch.setattr(emulator, "ptx_of_source", wrong)
