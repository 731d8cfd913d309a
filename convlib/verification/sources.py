"""The hash of what a kernel is made of: when it changes, what was found about the kernel no longer counts."""

from __future__ import annotations

import ast
import hashlib
import re
from functools import cache
from pathlib import Path

from .. import dispatch
from ..machine import installed_version, kernels_folder

PACKAGE = Path(__file__).parents[1]
JUDGES = ("verification/problems.py", "verification/checks.py", "accuracy.py")  # what the kernel was held against
COMPILERS = {
    "numba_cpu": ("numba", "llvmlite"),
    "numba_cuda": ("numba", "numba-cuda", "nvidia-cuda-nvcc", "nvidia-nvjitlink", "nvidia-cuda-nvrtc"),
    "cupy_raw": ("cupy-cuda12x", "cupy-cuda13x", "nvidia-cuda-nvrtc"),
}


@cache
def digest(name: str) -> str:
    """Of the listed kernel `name`: its file and what it imports or includes, the compilers' options and versions, and
    the problems and bounds that it is verified with.
    """
    family = dispatch.family_of(name)
    hashed = hashlib.sha256()
    judges = [PACKAGE / file for file in JUDGES] + [kernels_folder() / "reference.py"]
    options = [] if family == "numba_cpu" else [PACKAGE / "compiling.py"]
    for path in [*sorted(files_of(name)), *judges, *options]:
        hashed.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    hashed.update(repr([(package, installed_version(package)) for package in COMPILERS[family]]).encode())
    return hashed.hexdigest()[:16]


def files_of(name) -> set[Path]:
    """The kernel's file and every file of kernels/ that it needs, directly or through others."""
    found, left = set(), [kernels_folder() / (name.replace(".", "/") + ".py")]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += imported(path) if path.suffix == ".py" else included(path)
    return found


def imported(path) -> list[Path]:
    """Files of kernels/ that a Python file imports, and the .cu and .json files that it names."""
    text = path.read_text()
    modules = []
    for level, module, names in relative_imports(text):
        folder = path.parents[level - 1].joinpath(*module.split("."))
        modules += [folder.with_suffix(".py"), *(folder / f"{name}.py" for name in names)]
    sources = [path.parent / file for file in re.findall(r'"(\w+\.(?:cu|json))"', text)]
    return [file for file in modules + sources if file.is_file() and kernels_folder() in file.parents]


@cache  # every kernel asks for the files that all of them stand on
def relative_imports(text) -> list[tuple[int, str, list[str]]]:
    """Of the text of a Python file: how many dots, the module after them, and the names imported from it."""
    nodes = ast.walk(ast.parse(text))
    found = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
    return [(node.level, node.module or "", [name.name for name in node.names]) for node in found]


def included(path) -> list[Path]:
    files = (path.parent / file for file in re.findall(r'#include "([\w.]+)"', path.read_text()))
    return [file for file in files if file.is_file()]
