"""Writing machine code by tracing: Python that runs once, while a kernel is compiled, and leaves instructions behind.

A `Value` stands for a number, an address or a short vector that will exist when the kernel runs. Arithmetic on it
reads like NumPy and emits one LLVM instruction per operator. Python's own loops and lists run during tracing, so
they unroll and cost nothing later; `loop` and `when` are for what must be decided when the kernel runs:

    @traced(types.void)
    def scale(address, count, factor):              # in a kernel: scale(y, n, f); f is a float32
        V = Lanes("f32", 8)
        f = broadcast(V, factor)

        def step(i):
            store(address + 32 * i, load(V, address + 32 * i) * f)

        loop(count, step)

Numba sees `scale` as one function, so the unrolled code costs no type inference: a micro-kernel of hundreds of
instructions compiles in milliseconds. Lists of Values carried through `loop` become registers (LLVM's phi nodes).

Source: the idea is staging, as in Rompf and Odersky, Lightweight Modular Staging, GPCE 2010.
"""

import inspect

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import target
from .compilation import once
from .traced_values import BITS, I64, Lanes, Value, call, constant, zeros

# Vectors.


def broadcast(V, scalar):
    """`scalar` in every lane."""
    b = scalar.builder
    first = b.insert_element(ir.Constant(V.ir, ir.Undefined), scalar.ir, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), V.count), [0] * V.count)
    return Value(b, b.shuffle_vector(first, ir.Constant(V.ir, ir.Undefined), mask), V)


def shuffle(a, b, order):
    """Lanes picked from a (0 .. n-1) and b (n .. 2n-1), in `order`."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), list(order))
    return Value(a.builder, a.builder.shuffle_vector(a.ir, b.ir, mask), Lanes(a.type.kind, len(order)))


def extract(vector, lane):
    lane = constant(vector, lane, I64)
    return Value(vector.builder, vector.builder.extract_element(vector.ir, lane.ir), vector.type.scalar)


def lane_numbers(V, like):
    """0, 1, 2, ... as 32-bit integers, or 64-bit for 64-bit lanes."""
    kind = "i64" if BITS[V.kind] == 64 else "i32"
    return Value(like.builder, ir.Constant(V.of(kind).ir, list(range(V.count))), V.of(kind))


def first_lanes(V, count):
    """A mask: true in the first `count` lanes (none for a count below 1, all for one past the end)."""
    numbers = lane_numbers(V, count)
    kind = numbers.type.scalar
    limit = count if kind == I64 else convert(minimum(maximum(count, 0), V.count), kind)
    return numbers < broadcast(numbers.type, limit)


def lanes_between(V, number, first, end):
    """A mask: true in the lanes i with first <= number + i < end."""
    numbers = lane_numbers(V, number)

    def bound(limit):
        inside = minimum(maximum(constant(number, limit, I64) - number, 0), V.count)
        return broadcast(numbers.type, convert(inside, numbers.type.scalar))

    return (numbers >= bound(first)) & (numbers < bound(end))


def constant_mask(V, like, wanted):
    """A mask known while compiling: true in the lanes whose entry in `wanted` is true."""
    mask = V.of("i1")
    return Value(like.builder, ir.Constant(mask.ir, [int(bool(lane)) for lane in wanted]), mask)


def fma(a, b, c):
    """a * b + c, rounded once."""
    if "fma" in target.features() or target.vector_bytes() == 64 or target.architecture() == "aarch64":
        return call(a, f"llvm.fma.{a.type.suffix}", a.type, [a, constant(a, b), constant(a, c)])
    return a * b + c


def select(condition, a, b):
    """a where `condition` holds, else b; one of a and b may be a Python number."""
    like = a if isinstance(a, Value) else b
    a, b = constant(like, a), constant(like, b)
    return Value(like.builder, like.builder.select(condition.ir, a.ir, b.ir), like.type)


def maximum(a, b):
    """The larger; where a is NaN, b."""
    b = constant(a, b)
    return select(a > b, a, b)


def minimum(a, b):
    """The smaller; where a is NaN, b."""
    b = constant(a, b)
    return select(a < b, a, b)


def convert(value, to):
    """The same numbers as another type with as many lanes; float to integer rounds toward zero."""
    of, b = value.type, value.builder
    if of.kind == to.kind:
        return value
    if of.is_float and to.is_float:
        name = "fpext" if BITS[to.kind] > BITS[of.kind] else "fptrunc"
    elif of.is_float:
        name = "fptosi"
    elif to.is_float:
        name = "sitofp"
    elif BITS[to.kind] < BITS[of.kind]:
        name = "trunc"
    else:
        name = "zext" if of.kind == "i1" else "sext"
    return Value(b, getattr(b, name)(value.ir, to.ir), to)


def zero_extend(value, to):
    return Value(value.builder, value.builder.zext(value.ir, to.ir), to)


def bits(value, to):
    """The same bits, read as another type of the same size."""
    return Value(value.builder, value.builder.bitcast(value.ir, to.ir), to)


def hidden(number):
    """The same integer, of which the compiler knows nothing.

    What is loaded through a hidden address is loaded again rather than kept in a register and spilled; a loop with a
    hidden count is not unrolled. Costs no instruction: it is inline assembly with none in it.
    """
    empty = ir.FunctionType(number.type.ir, [number.type.ir])
    return Value(number.builder, number.builder.asm(empty, "", "=r,0", [number.ir], False), number.type)


def settled(vector):
    """The same vector, which is there before what is stored next, as it is written; the compiler would make it late.

    Costs no instruction. Where registers are not known by that name, nothing is said to the compiler.
    """
    if target.vector_bytes() < 64:
        return vector
    same = ir.FunctionType(vector.type.ir, [vector.type.ir])
    return Value(vector.builder, vector.builder.asm(same, "", "=v,0,~{memory}", [vector.ir], True), vector.type)


# Memory: addresses are 64-bit integers.


def pointer(address, type_):
    return address.builder.inttoptr(address.ir, type_.ir.as_pointer())


def load(V, address):
    """Read a V from `address`, which needs only its element's alignment."""
    return Value(address.builder, address.builder.load(pointer(address, V), align=V.item_bytes), V)


def store(address, value):
    """Write `value` to `address`, which needs only its element's alignment."""
    address.builder.store(value.ir, pointer(address, value.type), align=value.type.item_bytes)


def store_past_cache(address, value):
    """Write without reading the line into the cache first; `address` must be a multiple of the vector's size."""
    instruction = address.builder.store(value.ir, pointer(address, value.type), align=value.type.bytes)
    one = ir.Constant(ir.IntType(32), 1)
    instruction.set_metadata("nontemporal", address.builder.module.add_metadata([one]))


def load_lanes(V, address, mask):
    """Read the lanes that `mask` allows, zero in the others; the others' addresses are not touched."""
    align = constant(address, V.item_bytes, Lanes("i32"))
    where = Value(address.builder, pointer(address, V), None)
    return call(address, f"llvm.masked.load.{V.suffix}.p0", V, [where, align, mask, zeros(V, address)])


def store_lanes(address, value, mask):
    """Write the lanes that `mask` allows and touch no others."""
    align = constant(address, value.type.item_bytes, Lanes("i32"))
    where = Value(address.builder, pointer(address, value.type), None)
    call(address, f"llvm.masked.store.{value.type.suffix}.p0", None, [value, where, align, mask])


def load_strided(V, address, step):
    """Read V.count elements that lie `step` bytes apart."""
    vector = Value(address.builder, ir.Constant(V.ir, ir.Undefined), V)
    for i in range(V.count):
        item = load(V.scalar, address + step * i)
        lane = ir.Constant(ir.IntType(32), i)
        vector = Value(address.builder, address.builder.insert_element(vector.ir, item.ir, lane), V)
    return vector


def prefetch(address, level=1, to_write=False):
    """Ask for the line at `address` to be brought into the cache of that level, 1 or 2; never faults. to_write: and
    for no other core to keep it.
    """
    where = Value(address.builder, pointer(address, Lanes("i8")), None)
    flags = [constant(address, n, Lanes("i32")) for n in (to_write, 4 - level, 1)]  # how near to keep it, data
    call(address, "llvm.prefetch.p0", None, [where, *flags])


def interleave(rows):
    """The numbers of n vectors in the order first of each, second of each, ...: n vectors again; n a power of two."""
    n = len(rows)
    if n == 1:
        return rows
    count = rows[0].type.count
    low, high = [], []
    for a, b in zip(rows[: n // 2], rows[n // 2 :]):
        zipped = [j // 2 + j % 2 * count for j in range(2 * count)]
        low.append(shuffle(a, b, zipped[:count]))
        high.append(shuffle(a, b, zipped[count:]))
    return interleave(low) + interleave(high)


def split(vectors):
    """The inverse of `interleave`: of the numbers of n vectors, one after the other, every n-th from the first, the
    second, ... on: n vectors again; n a power of two.
    """
    n = len(vectors)
    if n == 1:
        return vectors
    count = vectors[0].type.count
    halves = [[shuffle(a, b, range(i, 2 * count, 2)) for a, b in zip(vectors[::2], vectors[1::2])] for i in (0, 1)]
    return [vector for pair in zip(*map(split, halves)) for vector in pair]


def transpose(rows):
    """The columns of a square of vectors: n vectors of n lanes, in log2(n) rounds of two-vector shuffles."""
    n = len(rows)
    half = n // 2
    while half:
        swapped = list(rows)
        for i in range(n):
            if i & half:
                continue
            upper, lower = rows[i], rows[i | half]
            swapped[i] = shuffle(upper, lower, [j if not j & half else n + (j ^ half) for j in range(n)])
            swapped[i | half] = shuffle(upper, lower, [j | half if not j & half else n + j for j in range(n)])
        rows = swapped
        half //= 2
    return rows


# Several threads.


def fetch_add(address, amount):
    """Add to the 64-bit word at `address`, as one step among all threads; returns what was there."""
    amount = constant(address, amount)
    word = address.builder.atomic_rmw("add", pointer(address, I64), amount.ir, "seq_cst")
    return Value(address.builder, word, I64)


def load_shared(address):
    """Read a 64-bit word that other threads write."""
    word = address.builder.load_atomic(pointer(address, I64), "seq_cst", 8)
    return Value(address.builder, word, I64)


def store_shared(address, value, ordering="seq_cst"):
    """Write a 64-bit word that other threads read."""
    value = constant(address, value)
    address.builder.store_atomic(value.ir, pointer(address, I64), ordering, 8)


def pause(like):
    """Tell the processor that this thread is spinning."""
    if target.architecture() == "x86_64":
        call(like, "llvm.x86.sse2.pause", None, [])
    elif target.architecture() == "aarch64":
        call(like, "llvm.aarch64.hint", None, [constant(like, 1, Lanes("i32"))])


def call_address(address, *arguments):
    """Call the C function void f(int64, ...) at `address`."""
    signature = ir.FunctionType(ir.VoidType(), [a.ir.type for a in arguments])
    function = address.builder.inttoptr(address.ir, signature.as_pointer())
    address.builder.call(function, [a.ir for a in arguments])


# Control flow of the running kernel.


def flatten(tree):
    """The Values in nested lists, in order, and a function that puts others into the same nesting. None stays None."""
    if tree is None:
        return [], lambda values: None
    if isinstance(tree, Value):
        return [tree], lambda values: values.pop(0)
    parts = [flatten(item) for item in tree]
    return [v for values, _ in parts for v in values], lambda values: [rebuild(values) for _, rebuild in parts]


def loop(count, body, carried=None):
    """Run body(i) for i = 0 .. count-1; with `carried` (nested lists of Values), carried = body(i, carried).

    Returns what was carried out of the last round (`carried` itself for no rounds).
    """
    builder = count.builder
    values, rebuild = flatten([] if carried is None else carried)
    before = builder.block
    head = builder.append_basic_block("loop.head")
    inside = builder.append_basic_block("loop.body")
    after = builder.append_basic_block("loop.after")
    builder.branch(head)

    builder.position_at_end(head)
    index = builder.phi(I64.ir)
    index.add_incoming(ir.Constant(I64.ir, 0), before)
    phis = [builder.phi(v.type.ir) for v in values]
    for phi, value in zip(phis, values):
        phi.add_incoming(value.ir, before)
    i = Value(builder, index, I64)
    builder.cbranch((i < count).ir, inside, after)

    builder.position_at_end(inside)
    now = [Value(builder, phi, v.type) for phi, v in zip(phis, values)]
    result = body(i) if carried is None else body(i, rebuild(list(now)))
    following, _ = flatten([] if carried is None else result)
    for phi, value in zip(phis, following):
        phi.add_incoming(value.ir, builder.block)
    index.add_incoming((i + 1).ir, builder.block)
    builder.branch(head)

    builder.position_at_end(after)
    return None if carried is None else rebuild([Value(builder, phi, v.type) for phi, v in zip(phis, values)])


def when(condition):
    """`with when(c):` emits instructions that run where c holds."""
    return condition.builder.if_then(condition.ir)


def choose(condition, yes, no):
    """yes() or no(), as `condition` decides when running; both return nested lists of Values alike, or both None."""
    builder = condition.builder
    with builder.if_else(condition.ir) as (then, otherwise):
        with then:
            first, rebuild = flatten(yes() or [])
            first_end = builder.block
        with otherwise:
            second, _ = flatten(no() or [])
            second_end = builder.block
    phis = []
    for a, b in zip(first, second):
        phi = builder.phi(a.type.ir)
        phi.add_incoming(a.ir, first_end)
        phi.add_incoming(b.ir, second_end)
        phis.append(Value(builder, phi, a.type))
    return rebuild(phis)


# From Numba's types, and into them.


def lanes_of(numba_type):
    """The traced type of a Numba number; booleans are Numba's i8 outside, i1 here."""
    if isinstance(numba_type, types.Float):
        return Lanes(f"f{numba_type.bitwidth}")
    if isinstance(numba_type, (types.Integer, types.Boolean)):
        return Lanes(f"i{numba_type.bitwidth}" if isinstance(numba_type, types.Integer) else "i1")
    return Lanes(lanes_of(numba_type.dtype).kind, numba_type.count)  # vectors.Vector


def argument_type(numba_type):
    """Integers arrive as int64, whatever Numba inferred; floats and vectors as they are."""
    numba_type = types.unliteral(numba_type)
    return types.int64 if isinstance(numba_type, types.Integer) else numba_type


def traced(returns):
    """Make a Numba function of a Python function on Values. returns: its Numba type, or a function of the arguments'
    types.
    """

    return lambda function: once(make_traced, function, returns)


def make_traced(function, returns):
    def typed(typing_context, *arguments):
        arguments = [argument_type(a) for a in arguments]
        result = returns if isinstance(returns, types.Type) else returns(*arguments)

        def emit(context, builder, signature, values):
            value = function(*(Value(builder, v, lanes_of(t)) for v, t in zip(values, signature.args)))
            return context.get_dummy_value() if result == types.void else value.ir

        return result(*arguments), emit

    return named_intrinsic(typed, function)


def named_intrinsic(typed, function):
    """`typed` as a Numba intrinsic under the name and with the parameters of `function`."""
    context = inspect.Parameter("typing_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    typed.__signature__ = inspect.Signature([context, *parameters])
    typed.__name__, typed.__doc__ = function.__name__, function.__doc__
    return intrinsic(typed)
