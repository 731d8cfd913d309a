"""A file of JSON that several processes read and change, and whose loss is worth no failure.

It is replaced as a whole, under a lock, so two processes lose nothing of each other and nobody reads half a file. One
that is damaged, locked, or cannot be written is warned of, and things go on as if there were none.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Format:
    """What a file holds. understood: the parts of its content that matter; raises what any wrong shape of it raises.

    empty: makes the content of a file that is not there. warning: the category of what is said about damage.
    """

    understood: Callable[[dict], dict]
    empty: Callable[[], dict]
    warning: type[Warning]

    def read(self, path: Path) -> dict:
        """A file's content; empty, with a warning, where it is damaged or cannot be read."""
        try:
            return self.understood(json.loads(path.read_bytes()))
        except FileNotFoundError:
            pass
        except OSError as error:
            self.warn(path, "cannot be read", error)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self.warn(path, "is damaged and counts as empty", error)
        return self.empty()

    def warn(self, path, what, error):
        warnings.warn(f"{path} {what}: {error}", self.warning, stacklevel=4)


class JsonFile:
    """One file. constant: what it holds beside the changing content, to say what it is about."""

    def __init__(self, path: Path, format: Format, constant: dict):
        self.path, self.format, self.constant = path, format, constant
        self.out_of_reach = False

    def read(self) -> dict:
        return self.format.read(self.path)

    def change(self, function: Callable[[dict], None]) -> None:
        """Let `function` change the content, while nobody else does."""
        if self.out_of_reach:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock", timeout=LOCK_SECONDS):
                content = self.read()
                function(content)
                self.write(content)
        except (OSError, Timeout) as error:
            self.out_of_reach = True  # tried once, not for every change again
            self.format.warn(self.path, "cannot be written, so nothing is remembered", error)

    def write(self, content):
        text = json.dumps({**content, **self.constant}, indent=1)
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, suffix=".tmp", delete=False) as file:
            try:
                file.write(text)
                file.close()
                os.replace(file.name, self.path)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(file.name)
                raise
