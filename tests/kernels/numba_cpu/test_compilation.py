"""Compiled kernels on disk: found again, not found after an edit, and no trouble where nothing can be written or
read.
"""

import numpy as np
import pytest

from convlib.kernels.numba_cpu import compilation
from convlib.kernels.numba_cpu.vectors import store_shared


def build_constant(number):
    def write_number(address):
        store_shared(address, number)

    return write_number


def written_by(kernel):
    word = np.zeros(1, np.int64)
    kernel.call(word.ctypes.data)
    return word[0]


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(compilation, "folders", lambda: [tmp_path / "new" / "cache"])
    return tmp_path / "new" / "cache"


def never(*_):
    raise AssertionError("compiled, though it lay on disk")


def test_a_second_process_finds_the_code_on_disk(folder, monkeypatch):
    assert written_by(compilation.load_or_compile(build_constant, (7,))) == 7
    monkeypatch.setattr(compilation, "compile_with_numba", never)
    assert written_by(compilation.load_or_compile(build_constant, (7,))) == 7


def test_other_constants_and_other_sources_are_other_code(folder, monkeypatch):
    first = compilation.key("name", (7,))
    assert compilation.key("name", (8,)) != first
    monkeypatch.setattr(compilation, "common_key", lambda: b"an edited source")
    assert compilation.key("name", (7,)) != first


def test_an_edit_of_any_source_changes_the_common_key(monkeypatch, tmp_path):
    (tmp_path / "callee.py").write_text("a = 1")
    monkeypatch.setattr(compilation, "SOURCES", tmp_path)
    first = compilation.common_key.__wrapped__()
    (tmp_path / "callee.py").write_text("a = 2")
    assert compilation.common_key.__wrapped__() != first


def test_damaged_files_are_compiled_anew(folder):
    compilation.load_or_compile(build_constant, (9,))
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-50])
    assert written_by(compilation.load_or_compile(build_constant, (9,))) == 9
    compilation.load_or_compile(build_constant, (9,))
    assert len(list(folder.iterdir())) == 1


def test_works_where_nothing_can_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compilation, "folders", lambda: [tmp_path / "file" / "cache"])
    assert written_by(compilation.load_or_compile(build_constant, (11,))) == 11
