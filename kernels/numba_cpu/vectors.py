"""Short vectors inside Numba: one register full of numbers, with NumPy's operators.

    V = Vector(float32, 8)                       # a Numba type; lanes(np.float32) says how many fit a register

    @njit
    def add_scaled(x, y, n, factor):             # x, y: addresses (int64); y += factor * x
        f = broadcast(V, factor)
        for i in range(0, n - 7, 8):
            store(y, i, fma(load(V, x, i), f, load(V, y, i)))
        tail = first(V, n % 8)
        i = n - n % 8
        store_lanes(y, i, fma(load_lanes(V, x, i, tail), f, load_lanes(V, y, i, tail)), tail)

Addresses are plain integers and offsets count elements, so a kernel decides itself what its strides mean. Each
function is one traced function of tracing.py: use these in a kernel's loops, and tracing itself where code must be
unrolled.
"""

import operator

from numba.core import cgutils, types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable
from numba.np.arrayobj import populate_array

from . import tracing
from .target import lanes  # noqa: F401  (part of this module's vocabulary)
from .tracing import Lanes, Value, argument_type, lanes_of, named_intrinsic, traced


class Vector(types.Type):
    """`count` numbers of a Numba type `dtype`, in registers."""

    def __init__(self, dtype, count):
        self.dtype, self.count = dtype, count
        super().__init__(name=f"Vector({dtype}, {count})")

    @property
    def lanes(self):
        return Lanes(lanes_of(self.dtype).kind, self.count)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.lanes.ir)


def same_type(first, *_):
    return first


def mask_of(vector, *_):
    return Vector(types.boolean, vector.count)


def value(builder, raw, numba_type):
    return Value(builder, raw, lanes_of(numba_type))


# Functions whose first argument is the vector type.


def any_arguments(vector, *arguments):
    return [argument_type(a) for a in arguments]


def its_number(vector, _):
    return [vector.dtype]


def typed_by_vector(returns=same_type, arguments_of=any_arguments):
    """Like `traced`, for functions called with a Vector type first: f(V, ...), traced as f(V's Lanes, ...)."""

    def decorate(function):
        def typed(typing_context, V, *arguments):
            vector = V.instance_type if isinstance(V, types.TypeRef) else V
            arguments = arguments_of(vector, *arguments)

            def emit(context, builder, signature, raw):
                values = (value(builder, v, t) for v, t in zip(raw[1:], signature.args[1:]))
                return function(vector.lanes, *values).ir

            return returns(vector)(V, *arguments), emit

        return named_intrinsic(typed, function)

    return decorate


@typed_by_vector(arguments_of=its_number)
def broadcast(V, scalar):
    """A vector of V with `scalar` in every lane."""
    return tracing.broadcast(V, scalar)


@typed_by_vector()
def load(V, address, i):
    """The vector at element i of the numbers at `address`; no alignment needed."""
    return tracing.load(V, address + i * V.item_bytes)


@typed_by_vector()
def load_lanes(V, address, i, mask):
    """As load, but only the lanes of `mask`; the others are 0 and their memory is not touched."""
    return tracing.load_lanes(V, address + i * V.item_bytes, mask)


@typed_by_vector()
def load_strided(V, address, i, step):
    """Elements i, i + step, i + 2 step, ...: a gather."""
    return tracing.load_strided(V, address + i * V.item_bytes, step * V.item_bytes)


@typed_by_vector()
def load_even(V, address, i):
    """Elements i, i + 2, i + 4, ... by two loads and a shuffle: faster than load_strided, but reads one element
    more.
    """
    here = address + i * V.item_bytes
    return tracing.shuffle(tracing.load(V, here), tracing.load(V, here + V.bytes), list(range(0, 2 * V.count, 2)))


@typed_by_vector(mask_of)
def first(V, count):
    """A mask of V's first `count` lanes."""
    return tracing.first_lanes(V, count)


# Functions of vectors and addresses.


@traced(types.void)
def store(address, i, vector):
    """Write `vector` to element i of the numbers at `address`; no alignment needed."""
    tracing.store(address + i * vector.type.item_bytes, vector)


@traced(types.void)
def store_past_cache(address, i, vector):
    """As store, without reading the cache line first. The address written must be a multiple of the vector's size."""
    tracing.store_past_cache(address + i * vector.type.item_bytes, vector)


@traced(types.void)
def store_lanes(address, i, vector, mask):
    """As store, but only the lanes of `mask`; the others' memory is not touched."""
    tracing.store_lanes(address + i * vector.type.item_bytes, vector, mask)


@traced(same_type)
def fma(a, b, c):
    """a * b + c, rounded once where the processor can."""
    return tracing.fma(a, b, c)


@traced(same_type)
def maximum(a, b):
    return tracing.maximum(a, b)


@traced(same_type)
def minimum(a, b):
    return tracing.minimum(a, b)


@traced(lambda mask, a, b: a)
def select(mask, a, b):
    """a in the lanes of `mask`, b in the others."""
    return tracing.select(mask, a, b)


@traced(lambda vector: vector.dtype)
def sum_lanes(vector):
    """The sum of all lanes, halves added to halves."""
    n = vector.type.count
    while n > 1:
        n //= 2
        vector = tracing.shuffle(vector, vector, range(n)) + tracing.shuffle(vector, vector, range(n, 2 * n))
    return tracing.extract(vector, 0)


@traced(types.void)
def prefetch(address):
    tracing.prefetch(address)


@traced(types.int64)
def fetch_add(address, amount):
    """Add to a 64-bit word as one step among all threads; returns what was there."""
    return tracing.fetch_add(address, amount)


@traced(types.int64)
def load_shared(address):
    return tracing.load_shared(address)


@traced(types.void)
def store_shared(address, word):
    tracing.store_shared(address, word)


@traced(types.void)
def store_released(address, word):
    """As store_shared, but this thread need not wait for it: whoever sees the word sees what was written before."""
    tracing.store_shared(address, word, "release")


@traced(types.int64)
def pause(word):
    """Spin politely: one pause; returns its argument."""
    tracing.pause(word)
    return word


@traced(types.void)
def call_task_loop(address, call, job, worker):
    """Call the C function void f(int64, int64, int64) at `address`."""
    tracing.call_address(address, call, job, worker)


# Operators.


def define_operator(function, traced_function, returns=same_type):
    @type_callable(function)
    def typer(context):
        def of(a, b):
            if isinstance(a, Vector) and a == b:
                return returns(a)

        return of

    @lower_builtin(function, Vector, Vector)
    def emit(context, builder, signature, raw):
        a, b = (value(builder, v, t) for v, t in zip(raw, signature.args))
        return traced_function(a, b).ir


for function in (operator.add, operator.sub, operator.mul, operator.truediv, operator.and_, operator.or_, operator.xor):
    define_operator(function, function)
    in_place = getattr(operator, "i" + function.__name__.strip("_"), None)
    if in_place is not None:
        define_operator(in_place, function)
for function in (operator.lt, operator.le, operator.gt, operator.ge):
    define_operator(function, function, mask_of)


# Views of memory as records and arrays.


@intrinsic
def record_at(typing_context, record_type, address):
    """The record of a NumPy structured dtype (given as a Numba Record type) that lies at `address`."""
    record = record_type.instance_type if isinstance(record_type, types.TypeRef) else record_type

    def emit(context, builder, signature, raw):
        return builder.inttoptr(raw[1], context.get_value_type(record))

    return record(record_type, types.int64), emit


@intrinsic
def array_at(typing_context, dtype, address, shape, strides):
    """An array over the memory at `address`: a 1-D to 4-D view with any strides, in bytes; shape, strides: tuples of
    int64.
    """
    element = dtype.instance_type if isinstance(dtype, types.TypeRef) else dtype.dtype
    array_type = types.Array(element, len(shape), "A")
    sizes = types.UniTuple(types.int64, len(shape))

    def emit(context, builder, signature, raw):
        _, address, shape, strides = raw
        item = context.get_constant(types.intp, element.bitwidth // 8)
        array = context.make_array(array_type)(context, builder)
        populate_array(
            array,
            builder.inttoptr(address, context.get_data_type(element).as_pointer()),
            cgutils.unpack_tuple(builder, shape),
            cgutils.unpack_tuple(builder, strides),
            item,
            meminfo=None,
        )
        return array._getvalue()

    return array_type(dtype, types.int64, sizes, sizes), emit
