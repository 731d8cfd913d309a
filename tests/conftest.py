"""What holds for every CPU kernel that any test compiles."""

import gc

import pytest

from convlib.kernels.numba_cpu import compilation

# Of the objects that Numba's compiler makes hardly one is garbage: to look for some after every 700 took 14 % of the
# time of thirteen kernels' compilation (21.0 s; 18.1 s so, on a Zen 4).
gc.set_threshold(50_000, 20, 20)

NUMBAS_OWN = ("_ZN5numba", "cfunc._ZN5numba", "NRT_", "nrt_")  # as their names begin in machine code


@pytest.fixture(scope="session", autouse=True)
def nothing_is_compiled_before_its_kernel():
    """Whoever compiles a kernel that calls a function of which Numba made machine code before (numba.njit instead of
    compilation.inlined) fails: that process may well be right, but one that finds the kernel on disk wrong.
    """
    compile_with_numba = compilation.compile_with_numba

    def checked(function):
        kernel, parameters = compile_with_numba(function)
        early = compiled_early(kernel._library)
        assert not early, f"{', '.join(early)}: machine code was made of it before {function.__qualname__} called it"
        return kernel, parameters

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "compile_with_numba", checked)
        yield


def compiled_early(library):
    """Of what is linked into `library`, directly or through others, that of which machine code was made before.

    Numba's own functions may have been: kernels use its min, max and the like, which read no memory.
    """
    found = []
    for linked in library._linking_libraries:
        if isinstance(linked, compilation.LinkedLibrary):
            found += compiled_early(linked)
        elif not all(function.name.startswith(NUMBAS_OWN) for function in linked.get_defined_functions()):
            found.append(linked.name)
    return found
