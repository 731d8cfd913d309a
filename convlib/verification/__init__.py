"""Whether every listed kernel does on this machine what it promises: `python -m convlib verify`, and what it remembers.

problems.py    the problems, their arrays, and the guards around these
checks.py      one kernel against one problem: values, bits, and everything that it must leave alone
child.py       the process in which kernels are checked
rows.py        what there is to check: devices, and for each a row for every kernel, pass and dtype
children.py    processes with a time limit, so that a crash or a hang is one red row and not the end of the run
runs.py        a run over all rows, which goes on where it was interrupted
records.py     what was found, on disk: by device and driver, kernel and version
sources.py     the hash of what a kernel is made of
"""
