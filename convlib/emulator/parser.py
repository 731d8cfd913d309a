"""PTX text to instructions: what NVRTC and Numba write, for every target, and nothing more.

    text -> tokens (with their line) -> statements -> Module: variables and functions
                                                       Function: parameters, registers, instructions, labels

Every instruction keeps its line in the PTX and, where the compiler wrote .loc directives (-lineinfo), its line in the
CUDA C or Python source. Braces inside a function (inline assembly) open a scope: registers declared there get a name
of their own. What is not understood is refused with its line; nothing is skipped but debug sections and pragmas.
Source: NVIDIA, PTX ISA 9.0, chapters 4 (syntax) and 5 (state spaces, types, variables).
"""

from __future__ import annotations

import re

import numpy as np

from .syntax import (
    SIZES,
    Address,
    Function,
    Immediate,
    Instruction,
    Module,
    Negated,
    Pair,
    PtxError,
    Register,
    Symbol,
    Variable,
    Vector,
)

TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\f]+|//[^\n]*)|(?P<newline>\n)|(?P<comment>/\*.*?\*/)|(?P<string>"[^"\n]*")"""
    r"""|(?P<number>0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|0[xX][0-9a-fA-F]+U?|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?U?)"""
    r"""|(?P<word>[%$_.A-Za-z](?:[\w$.%]|::)*)|(?P<mark>[{}\[\]()<>,;:|!@=+*-])""",
    re.DOTALL,
)
LINKAGE = {".extern", ".visible", ".weak", ".common"}
SPACES = {".global", ".const", ".shared", ".local"}
SKIPPED_TO_END_OF_LINE = {".version", ".address_size"}


def parse(text: str) -> Module:
    """The module that `text`, a PTX file, describes. Raises PtxError, with the line, for what it does not know."""
    return Parser(text).module()


class Parser:
    def __init__(self, text):
        self.text = text
        self.tokens, self.lines = tokens_of(text)
        self.at = 0
        self.files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE))
        self.source = None
        self.scopes = []
        self.scope_count = 0

    # Tokens

    def peek(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def next(self):
        token = self.peek()
        if token is None:
            raise PtxError("the PTX ends in the middle of a statement")
        self.at += 1
        return token

    def take(self, token):
        """Whether the next token is `token`, which is then behind us."""
        if self.peek() == token:
            self.at += 1
            return True
        return False

    def need(self, token):
        if not self.take(token):
            raise self.error(f"{token!r} expected, found {self.peek()!r}")

    def line(self):
        return self.lines[min(self.at, len(self.lines) - 1)]

    def error(self, message, line=None):
        return PtxError(f"PTX line {line or self.line()}: {message}")

    def rest_of_line(self):
        """The remaining tokens of the current line."""
        line, first = self.lines[self.at - 1], self.at
        while self.at < len(self.tokens) and self.lines[self.at] == line:
            self.at += 1
        return self.tokens[first : self.at]

    def integer(self):
        negative = self.take("-")
        value = int(self.next().rstrip("U"), 0)
        return -value if negative else value

    # Module

    def module(self):
        target, functions, variables = None, {}, []
        while self.peek() is not None:
            token = self.next()
            if token == ".target":
                target = self.rest_of_line()[0]
            elif token in SKIPPED_TO_END_OF_LINE or token == ".file":
                self.rest_of_line()
            elif token == ".section":
                self.skip_section()
            elif token in LINKAGE:
                continue
            elif token in (".entry", ".func"):
                function = self.function(entry=token == ".entry")
                if function is not None:
                    functions[function.name] = function
            elif token in SPACES:
                variables.append(self.variable(token[1:]))
            elif token != ";":
                raise self.error(f"{token!r} is not known at the top of a file", self.lines[self.at - 1])
        if target is None:
            raise PtxError("no .target line: this is not PTX")
        return Module(target, functions, variables, self.text.splitlines())

    def skip_section(self):
        while self.next() != "{":
            pass
        depth = 1
        while depth:
            depth += {"{": 1, "}": -1}.get(self.next(), 0)

    def variable(self, space):
        """What follows .global, .shared, ...: [.align n] .type name[size] [= values] ;"""
        align, type_ = None, None
        while self.peek().startswith("."):
            token = self.next()
            if token == ".align":
                align = self.integer()
            elif token[1:] in SIZES:
                type_ = token[1:]
            elif token not in (".attribute",):
                raise self.error(f"{token!r} is not known in a variable's declaration")
        name, count = self.next(), 1
        while self.take("["):
            count *= 0 if self.peek() == "]" else self.integer()
            self.need("]")
        initial = self.initial_values(type_, count) if self.take("=") else None
        self.need(";")
        return Variable(name, space, count * SIZES[type_], align or SIZES[type_], initial)

    def initial_values(self, type_, count):
        values = []
        if self.take("{"):
            while not self.take("}"):
                values.append(self.initial_value())
                self.take(",")
        else:
            values.append(self.initial_value())
        size = SIZES[type_]
        data = b"".join((v % (1 << 8 * size)).to_bytes(size, "little") for v in values)
        return data.ljust(count * size, b"\0")

    def initial_value(self):
        negative = self.take("-")
        token = self.next()
        if not token[0].isdigit():
            raise self.error(f"a variable initialised with the address of {token!r} is not known")
        value = number(token).bits
        return -value if negative else value

    # Functions

    def function(self, entry):
        if self.take("("):  # the value a device function returns
            while self.next() != ")":
                pass
        function = Function(self.next(), entry)
        if self.take("("):
            while not self.take(")"):
                function.parameters.append(self.parameter())
                self.take(",")
        while self.peek() not in ("{", ";"):
            self.performance_directive(function)
        if self.take(";"):  # a declaration
            return None
        self.need("{")
        self.source, self.scopes = None, [{}]
        while self.scopes:
            self.statement(function)
        return function

    def parameter(self):
        self.need(".param")
        align, type_ = None, None
        while self.peek().startswith("."):
            token = self.next()
            if token == ".align":
                align = align or self.integer() if type_ is None else self.pointer_alignment(align)
            elif token[1:] in SIZES:
                type_ = token[1:]
            elif token not in (".ptr", ".global", ".shared", ".const", ".local"):
                raise self.error(f"{token!r} is not known in a parameter's declaration")
        name, count = self.next(), 1
        if self.take("["):
            count = self.integer()
            self.need("]")
        return Variable(name, "param", count * SIZES[type_], align or SIZES[type_])

    def pointer_alignment(self, align):
        """`.ptr .align n` promises the alignment of what is pointed at; it says nothing about the parameter itself."""
        self.integer()
        return align

    def performance_directive(self, function):
        token = self.next()
        sizes = [int(t) for t in self.numbers()]
        if token in (".maxntid", ".reqntid"):
            function.most_threads = int(np.prod(sizes))
        elif token not in (".minnctapersm", ".maxnreg", ".noreturn"):
            raise self.error(f"{token!r} is not known after a function's parameters")

    def numbers(self):
        while self.peek()[0].isdigit():
            yield self.next()
            self.take(",")

    # Statements

    def statement(self, function):
        token = self.next()
        line = self.lines[self.at - 1]
        if token == "{":
            self.scope_count += 1
            self.scopes.append({})
        elif token == "}":
            self.scopes.pop()
        elif token == ".loc":
            self.location()
        elif token == ".reg":
            self.registers(function)
        elif token in SPACES:
            function.variables.append(self.variable(token[1:]))
        elif token == ".pragma":
            while self.next() != ";":
                pass
        elif token == ".branchtargets":
            self.branch_targets(function)
        elif self.peek() == ":":
            self.next()
            function.labels[token] = len(function.instructions)
        elif token != ";":
            self.instruction(function, token, line)

    def location(self):
        words = self.rest_of_line()
        file, line = words[0], int(words[1])
        if line:  # line 0 is the compiler's "nowhere in particular"
            self.source = (self.files.get(file, f"file {file}"), line)

    def registers(self, function):
        type_ = self.next()[1:]
        if type_ != "pred" and type_ not in SIZES:
            raise self.error(f"registers of type .{type_} are not known")
        while True:
            name = self.next()
            if self.take("<"):
                for i in range(self.integer()):
                    function.registers[self.declared(f"{name}{i}")] = type_
                self.need(">")
            else:
                function.registers[self.declared(name)] = type_
            if self.take(";"):
                return
            self.need(",")

    def declared(self, name):
        """The register's name in the function: those of inner scopes carry their scope's number."""
        unique = name if len(self.scopes) == 1 else f"{name}@{self.scope_count}"
        self.scopes[-1][name] = unique
        return unique

    def known(self, name):
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    def branch_targets(self, function):
        (label,) = (name for name, index in function.labels.items() if index == len(function.instructions))
        targets = []
        while not self.take(";"):
            targets.append(self.next())
            self.take(",")
        function.branch_targets[label] = tuple(targets)

    def instruction(self, function, opcode, line):
        guard, negated = None, False
        if opcode == "@":
            negated = self.take("!")
            guard = Register(self.known(self.next()))
            opcode = self.next()
        operands = []
        while not self.take(";"):
            operands.append(self.operand())
            if self.peek() != ";":
                self.need(",")
        function.instructions.append(Instruction(opcode, tuple(operands), line, self.source, guard, negated))

    def operand(self):
        if self.take("["):
            return self.address()
        if self.take("{"):
            items = []
            while not self.take("}"):
                items.append(self.operand())
                self.take(",")
            return Vector(tuple(items))
        if self.take("!"):
            return Negated(self.operand())
        if self.take("-"):
            value = number(self.next())
            return Immediate(-value.bits, value.kind)
        token = self.next()
        if token[0].isdigit():
            return number(token)
        first = self.named(token)
        if self.take("|"):
            return Pair(first, self.operand())
        if isinstance(first, Symbol) and self.take("+"):
            return Symbol(first.name, self.integer())
        return first

    def named(self, token):
        known = self.known(token)
        if known is not None:
            return Register(known)
        return Register(token) if token.startswith("%") or token == "_" else Symbol(token)

    def address(self):
        if self.peek()[0].isdigit():
            base, offset = None, self.integer()
        else:
            base, offset = self.named(self.next()), 0
        while not self.take("]"):
            sign = -1 if self.take("-") else 1
            if sign == 1:
                self.need("+")
            offset += sign * self.integer()
        return Address(base, offset)


def tokens_of(text):
    """The tokens of `text` and the line each stands on."""
    tokens, lines, line, at = [], [], 1, 0
    for match in TOKEN.finditer(text):
        if match.start() != at:
            break
        kind, at = match.lastgroup, match.end()
        if kind == "newline":
            line += 1
        elif kind == "comment":
            line += match.group().count("\n")
        elif kind != "blank":
            tokens.append(match.group())
            lines.append(line)
    if at != len(text):
        raise PtxError(f"PTX line {line}: {text[at]!r} is not known")
    return tokens, lines


def number(token: str) -> Immediate:
    """A constant as its bits: 7, 0x7, 0f3F800000 (float32), 0d3FF0000000000000 or 1.0 (float64)."""
    prefix = token[:2].lower()
    if prefix == "0f":
        return Immediate(int(token[2:], 16), "f32")
    if prefix == "0d":
        return Immediate(int(token[2:], 16), "f64")
    if prefix != "0x" and re.search(r"[.eE]", token):
        return Immediate(int(np.float64(token).view(np.uint64)), "f64")
    return Immediate(int(token.rstrip("U"), 0), "int")
