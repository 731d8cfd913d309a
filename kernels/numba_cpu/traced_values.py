"""What stands for numbers, addresses and vectors while a kernel is traced; tracing.py says what tracing is.

A `Value` has a type, `Lanes`, and operators that emit one LLVM instruction each; `constant` and `zeros` make Values of
Python's numbers, `call` calls an intrinsic of LLVM's.
"""

from dataclasses import dataclass

from llvmlite import ir

SCALARS = {
    "f16": ir.HalfType(),
    "f32": ir.FloatType(),
    "f64": ir.DoubleType(),
    "i1": ir.IntType(1),
    "i8": ir.IntType(8),
    "i16": ir.IntType(16),
    "i32": ir.IntType(32),
    "i64": ir.IntType(64),
}
BITS = {"f16": 16, "f32": 32, "f64": 64, "i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64}


@dataclass(frozen=True)
class Lanes:
    """The type of a Value: `count` numbers of `kind` ("f32", "i64", ...); count 0 is a plain number."""

    kind: str
    count: int = 0

    @property
    def ir(self):
        return ir.VectorType(SCALARS[self.kind], self.count) if self.count else SCALARS[self.kind]

    @property
    def scalar(self):
        return Lanes(self.kind)

    @property
    def is_float(self):
        return self.kind[0] == "f"

    @property
    def item_bytes(self):
        return BITS[self.kind] // 8

    @property
    def bytes(self):
        return self.item_bytes * max(self.count, 1)

    @property
    def suffix(self):
        """As LLVM spells the type in the names of its intrinsics: v8f32."""
        return f"v{self.count}{self.kind}" if self.count else self.kind

    def of(self, kind):
        """As many lanes of another kind."""
        return Lanes(kind, self.count)


I64 = Lanes("i64")


class Value:
    """A number or vector of the running kernel. Operators emit instructions; Python numbers are taken as
    constants.
    """

    __slots__ = ("builder", "ir", "type")

    def __init__(self, builder, value, type_):
        self.builder, self.ir, self.type = builder, value, type_

    def __add__(self, other):
        return binary(self, other, "fadd", "add")

    def __sub__(self, other):
        return binary(self, other, "fsub", "sub")

    def __mul__(self, other):
        return binary(self, other, "fmul", "mul")

    def __rsub__(self, other):
        return constant(self, other) - self

    def __truediv__(self, other):
        return binary(self, other, "fdiv", None)

    def __floordiv__(self, other):
        return binary(self, other, None, "sdiv")

    def __mod__(self, other):
        return binary(self, other, None, "srem")

    def __and__(self, other):
        return binary(self, other, None, "and_")

    def __or__(self, other):
        return binary(self, other, None, "or_")

    def __xor__(self, other):
        return binary(self, other, None, "xor")

    def __lshift__(self, other):
        return binary(self, other, None, "shl")

    def __rshift__(self, other):
        return binary(self, other, None, "lshr")

    def __lt__(self, other):
        return compare(self, "<", other)

    def __le__(self, other):
        return compare(self, "<=", other)

    def __gt__(self, other):
        return compare(self, ">", other)

    def __ge__(self, other):
        return compare(self, ">=", other)

    def equals(self, other):
        return compare(self, "==", other)

    def differs(self, other):
        return compare(self, "!=", other)

    def __neg__(self):
        return constant(self, 0.0 if self.type.is_float else 0) - self

    def __bool__(self):
        raise TypeError("a traced value is known only when the kernel runs: use select, when or loop")

    __radd__ = __add__
    __rmul__ = __mul__
    __hash__ = object.__hash__


def binary(a, b, float_name, integer_name):
    name = float_name if a.type.is_float else integer_name
    if name is None:
        raise TypeError(f"no such operation on {a.type}")
    return Value(a.builder, getattr(a.builder, name)(a.ir, constant(a, b).ir), a.type)


def compare(a, relation, b):
    b = constant(a, b)
    if a.type.is_float:
        emit = a.builder.fcmp_unordered if relation == "!=" else a.builder.fcmp_ordered
    else:
        emit = a.builder.icmp_signed
    return Value(a.builder, emit(relation, a.ir, b.ir), a.type.of("i1"))


def constant(like, number, type_=None):
    """`number` as a Value of `like`'s type (in all lanes), or of `type_`; a Value is returned as it is."""
    if isinstance(number, Value):
        return number
    type_ = type_ or like.type
    number = float(number) if type_.is_float else int(number)
    data = [number] * type_.count if type_.count else number
    return Value(like.builder, ir.Constant(type_.ir, data), type_)


def zeros(V, like):
    return constant(like, 0, V)


def call(like, name, result, arguments):
    """Call LLVM's intrinsic `name`; llvmlite has no names for those on vectors, so each is declared by hand."""
    module = like.builder.module
    function = module.globals.get(name)
    if function is None:
        signature = ir.FunctionType(result.ir if result else ir.VoidType(), [a.ir.type for a in arguments])
        function = ir.Function(module, signature, name)
    return Value(like.builder, like.builder.call(function, [a.ir for a in arguments]), result)
