"""Compiled kernels: made by Numba on first use, kept on disk as object code, called through their address.

A kernel's module has a function that builds the Python function to compile, from compile-time constants:

    def build(rows, columns):            # module level; constants are numbers or strings
        def kernel(call, job, worker):   # int64 parameters (addresses and numbers), nothing returned
            ...
        return kernel

    compiled(build, 4, 3).address        # compiled once per process; read from disk where it was compiled before

Why not numba's cache=True: its key holds the function's own file only, so an edit in a callee's file goes unnoticed,
and a dispatcher in a closure is pickled with a random number, so such a kernel is never found again. Here the key is
a hash of every source in this folder, the constants, Python's, Numba's and llvmlite's version, and the processor
with its features.

Why `inlined` and not numba.njit for what kernels call: Numba makes machine code of every function and then links the
same module, as the code generator left it, into the callers and optimizes it again. What the code generator leaves is
not meant for that: where an address was an integer it writes offsets from a null pointer, of which LLVM's optimizer
"knows" that nothing else lies there, and moves loads before the stores they read (Numba 0.68, LLVM 22). A process
that compiles runs the callees' first machine code and is right; one that finds the caller on disk is wrong. `inlined`
code never meets the code generator on its own. Nor is it optimized on its own, with copies of all that it calls, and
again in each of its callers: once, in the kernel, is enough, and halves the time that a kernel takes to compile.
Builders make the same functions for many kernels, and twice or three times for one: equal ones are compiled once in a
process (`once`), which takes a quarter of the time from 13 kinds of layers, a seventh from one 1x1 layer (Zen 4).

Why not call the dispatcher: it looks at the type of every argument and holds the GIL. A ctypes call of the address
costs half a microsecond and lets other Python threads run.
"""

import ctypes
import gc
import hashlib
import os
import sys
import tempfile
import threading
import types
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
import numba
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.errors import NumbaExperimentalFeatureWarning

from . import target

SOURCES = Path(__file__).parent
_lock = threading.RLock()
_compiled = {}


class LinkedLibrary(JITCodeLibrary):
    """Code that is linked into its callers' and is optimized and becomes machine code only there."""

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalized = True

    def get_pointer_to_function(self, name):
        return 0  # as for a function that is not there: nothing but compiled code calls it

    @property
    def codegen(self):
        return self  # whom Numba tells the environment of code that runs by itself

    def set_env(self, name, environment):
        pass


class LinkedCompiler(Compiler):
    """Numba's compiler, into a LinkedLibrary."""

    def define_pipelines(self):
        self.state.library = LinkedLibrary(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        return super().define_pipelines()


linked = numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=LinkedCompiler)


def inlined(function):
    """The decorator of every function that kernels call."""
    return once(linked, function)


_made = {}


def once(make, function, *constants):
    """make(function, *constants), or what it made of an equal function before."""
    try:
        key = make, meaning((function, *constants))
        found = _made.get(key)
    except (TypeError, ValueError):  # a free variable that cannot be hashed, or has no value yet: not to be compared
        return make(function, *constants)
    if found is None:
        found = _made[key] = make(function, *constants)
    return found


def meaning(value):
    """What two values have in common that cannot be told apart: functions of the same place in the sources whose free
    variables are equal, numbers that are equal and of one type.
    """
    if isinstance(value, types.FunctionType):
        free = [cell.cell_contents for cell in value.__closure__ or ()]
        defaults = value.__defaults__, tuple((value.__kwdefaults__ or {}).items())
        return id(value.__code__), value.__code__, meaning((defaults, *free))
    if isinstance(value, tuple):
        return tuple(map(meaning, value))
    return type(value), value


@dataclass(frozen=True, slots=True)
class Compiled:
    """A function of machine code. call: the same as a Python callable on ints (or ctypes pointers)."""

    address: int
    call: object
    owner: object  # keeps the machine code alive


def compiled(build, *constants) -> Compiled:
    """The machine code of build(*constants), from memory, from disk, or compiled now."""
    found = _compiled.get((build, constants))
    if found is None:
        with _lock:
            found = _compiled.get((build, constants)) or load_or_compile(build, constants)
            _compiled[build, constants] = found
    return found


def load_or_compile(build, constants) -> Compiled:
    name = f"{build.__module__.rpartition('.')[2]}.{build.__qualname__}"
    file = f"{name}-{key(name, constants)}.o"
    stored = read(file)
    if stored is None:
        function, parameters = compile_with_numba(build(*constants))
        write(file, parameters, function.native_name, function._library._get_compiled_object())
        return as_callable(function.address, parameters, function)
    parameters, symbol, code = stored
    engine = load(code)
    return as_callable(engine.get_function_address(symbol), parameters, engine)


def as_callable(address, parameters, owner):
    return Compiled(address, ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * parameters)(address), owner)


def compile_with_numba(function):
    """Compile a Python function of int64 parameters as a C function; returns Numba's CFunc and the number of
    parameters.
    """
    parameters = function.__code__.co_argcount
    signature = numba.void(*[numba.int64] * parameters)
    with rare_collections(), warnings.catch_warnings():
        # A record with fields of its own behind call.py's goes to functions that read call.py's.
        warnings.simplefilter("ignore", NumbaExperimentalFeatureWarning)
        return numba.cfunc(signature, nopython=True, error_model="numpy")(function), parameters


@contextmanager
def rare_collections():
    """Hardly one of the objects that Numba's compiler makes is garbage: looking for some after every 700 takes a tenth
    of its time.
    """
    before = gc.get_threshold()
    if before[0]:
        gc.set_threshold(max(before[0], 50_000), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def load(code):
    """An execution engine of its own for stored object code, so that equal symbol names cannot meet."""
    triple, processor, features = target.description()
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=processor, features=features, opt=3, codemodel="jitdefault", jit=True,
        reloc="static" if triple.startswith("x86") else "default",
    )  # fmt: skip
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(f'target triple = "{triple}"'), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


# The disk.


@cache
def common_key() -> bytes:
    """A hash of everything that changes all compiled code."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    digest.update(repr((sys.version, numba.__version__, llvmlite.__version__, target.description())).encode())
    return digest.digest()


def key(name, constants) -> str:
    return hashlib.sha256(common_key() + repr((name, constants)).encode()).hexdigest()[:32]


def folders():
    """Where compiled code may be kept, in order: NUMBA_CACHE_DIR, beside the sources, the user's cache folder.

    Nowhere where there are no sources to tell it from another version's, as in a zip file or a frozen program.
    """
    if not any(SOURCES.glob("*.py")):
        return []
    if numba.config.CACHE_DIR:
        return [Path(numba.config.CACHE_DIR) / "convlib"]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return [SOURCES / "__pycache__", home / "convlib"]


def read(file):
    """(parameters, symbol, object code) of a stored kernel; None where there is none or it is damaged."""
    for folder in folders():
        try:
            data = (folder / file).read_bytes()
        except OSError:
            continue
        checksum, _, content = data.partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() == checksum:
            parameters, symbol, code = content.split(b"\n", 2)
            return int(parameters), symbol.decode(), code
    return None


def write(file, parameters, symbol, code):
    """Keep a compiled kernel in the first folder that can be written; whoever reads it sees all of it or nothing."""
    content = b"\n".join([str(parameters).encode(), symbol.encode(), code])
    for folder in folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as temporary:
                try:
                    temporary.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
                    temporary.close()
                    os.replace(temporary.name, folder / file)
                    return
                except OSError:  # a full disk, of which nothing must stay taken
                    os.unlink(temporary.name)
        except OSError:
            continue
