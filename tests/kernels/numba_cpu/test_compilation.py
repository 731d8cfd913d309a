"""Compiled kernels on disk: found again, not found after an edit, and no trouble where nothing can be written or
read.
"""

import errno
import gc
import math
import os

import numba
import numpy as np
import pytest

from convlib.kernels.numba_cpu import compilation, target
from convlib.kernels.numba_cpu.traced_values import constant
from convlib.kernels.numba_cpu.tracing import store, traced
from convlib.kernels.numba_cpu.vectors import store_shared

from .held_to import AVX2, run_held_to


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


def test_a_full_disk_keeps_nothing_of_what_it_had_no_room_for(folder, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    assert written_by(compilation.load_or_compile(build_constant, (13,))) == 13
    assert list(folder.iterdir()) == []


def test_code_whose_sources_cannot_be_read_is_not_kept(monkeypatch, tmp_path):
    assert compilation.folders()
    monkeypatch.setattr(compilation, "SOURCES", tmp_path / "convlib.zip" / "convlib" / "kernels")
    assert compilation.folders() == []


def test_what_kernels_call_is_linked_before_the_code_generator_has_touched_it(monkeypatch):
    """What it leaves behind is not to be optimized again: see compilation.py."""
    libraries = []
    finalize = compilation.LinkedLibrary._finalize_final_module

    def noted(library):
        libraries.append(library)
        finalize(library)

    monkeypatch.setattr(compilation.LinkedLibrary, "_finalize_final_module", noted)

    @compilation.inlined
    def write_two(address):
        store_shared(address, 1)
        store_shared(address + 8, 2)

    compiled, _ = compilation.compile_with_numba(lambda address: write_two(address))

    words = np.zeros(2, np.int64)
    compilation.as_callable(compiled.address, 1, compiled).call(words.ctypes.data)
    assert words.tolist() == [1, 2]
    (library,) = libraries
    engine = numba.core.registry.cpu_target.target_context.codegen()._engine
    assert not any(engine.is_symbol_defined(f.name) for f in library.get_defined_functions())


def add_function(number):
    def of_word(word):
        return word + number

    @compilation.inlined
    def add(address, default=0):
        store_shared(address, of_word(default))

    return add


def multiple_function(numbers):
    """A traced function that writes the product of `numbers`, of which a plain function knows."""

    def product():
        return math.prod(numbers)

    @traced(numba.types.void)
    def multiple(address):
        store(address, constant(address, product()))

    return multiple


def test_equal_functions_are_one_and_others_are_not():
    for function in (add_function, lambda number: multiple_function((number, 3))):
        first = function(2)
        assert function(2) is first
        assert len({function(number) for number in (2, 3, 2.0)} | {first}) == 3
        assert function(True) is not function(1)
    listed = [2, 3]  # may change, so that functions of it are never equal
    assert multiple_function(listed) is not multiple_function(listed)

    @compilation.inlined
    def write_later(address):
        store_shared(address, later)

    later = 7  # after the function that it is a free variable of

    product, other = multiple_function((2, 3)), multiple_function((2, 5))

    def kernel(address):
        product(address)
        other(address + 8)
        write_later(address + 16)

    words = np.zeros(3, np.int64)
    compiled, _ = compilation.compile_with_numba(kernel)
    compilation.as_callable(compiled.address, 1, compiled).call(words.ctypes.data)
    assert words.tolist() == [6, 10, 7]


def test_pythons_garbage_collector_is_left_as_it_was():
    before, seen = gc.get_threshold(), []

    @traced(numba.types.void)
    def note(address):
        seen.append(gc.get_threshold())

    try:
        for threshold in ((700, 10, 10), (0, 10, 10)):  # as Python sets it; switched off
            gc.set_threshold(*threshold)
            compilation.compile_with_numba(lambda address: note(address))
            assert gc.get_threshold() == threshold
    finally:
        gc.set_threshold(*before)
    assert [threshold[0] for threshold in seen] == [50_000, 0]


def test_a_function_of_which_numba_made_machine_code_is_seen_wherever_it_is_called():
    """By what watches every compilation in these tests (tests/conftest.py)."""

    @numba.njit
    def write_one(address):
        store_shared(max(address, 0), 1)

    @compilation.inlined
    def write_through(address):
        write_one(address)

    for kernel in (lambda address: write_one(address), lambda address: write_through(address)):
        with pytest.raises(AssertionError, match="write_one: machine code was made of it before"):
            compilation.compile_with_numba(kernel)


@pytest.mark.skipif(target.architecture() != "x86_64", reason="about instruction sets of x86-64")
@pytest.mark.skipif(target.vector_bytes() < 64, reason="these tests ran with AVX2 already")
def test_kernels_compiled_for_avx2_read_nothing_before_it_is_written(tmp_path):
    """On a processor with AVX-512, where nothing else would see the other code; as compiled, and as found on disk."""
    chosen = "reads_nothing and (winograd or blocked) and (float64_wide or (float16_wide and winograd_f4))"
    for _ in range(2):
        run_held_to(AVX2, ["tests/kernels/test_every_kernel.py"], chosen, NUMBA_CACHE_DIR=str(tmp_path))
