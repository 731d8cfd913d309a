"""Whether every listed kernel does on this machine what it promises: `python -m convlib verify`, and what it remembers.

problems.py    the problems, their arrays, and the guards around these
checks.py      one kernel against one problem: values, bits, and everything that it must leave alone
child.py       the process in which kernels are checked, so that a crash or a hang is one red row
rows.py        what there is to check, the children with their time limits, and going on after an interruption
records.py     what was found, by device, kernel and version, on disk
"""
