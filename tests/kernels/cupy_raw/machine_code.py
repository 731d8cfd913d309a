"""What nvdisasm prints, read for one question: what does the main loop consist of?"""

import re
from collections import Counter

INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
LABEL = re.compile(r"^\s*(\.L_x_\w+):")
MULTIPLY = {"FFMA", "FFMA2", "DFMA"}


def instructions(sass):
    """(opcode, operands) of every instruction in order, and the index each label points to."""
    listed, labels = [], {}
    for line in sass.splitlines():
        if match := LABEL.match(line):
            labels[match[1]] = len(listed)
        elif match := INSTRUCTION.match(line):
            listed.append((match[2], match[3]))
    return listed, labels


def loops(sass):
    """Every loop as its list of opcodes: from a label to a later branch back to it; inner loops counted once."""
    listed, labels = instructions(sass)
    for end, (opcode, operands) in enumerate(listed):
        target = re.search(r"\.L_x_\w+", operands)
        if opcode.startswith("BRA") and target and labels.get(target[0], end) < end:
            yield [name for name, _ in listed[labels[target[0]] : end + 1]]


def main_loop(sass):
    """Opcodes of the loop with most multiply-adds per instruction (and most of them), counted."""
    with_multiplies = [loop for loop in loops(sass) if any(base(name) in MULTIPLY for name in loop)]
    return Counter(max(with_multiplies, key=lambda loop: (round(multiply_share(Counter(loop)), 2), len(loop))))


def multiply_share(counted):
    """The fraction of instructions that multiply and add. FFMA2 does two at once and is counted once."""
    return sum(n for name, n in counted.items() if base(name) in MULTIPLY) / counted.total()


def base(opcode):
    return opcode.partition(".")[0]
