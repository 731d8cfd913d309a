"""Benchmarks: our kernels beside the strongest peers of this machine, and from commit to commit.

    python -m benchmarks            what this machine has; --quick for two minutes
    pytest benchmarks               our kernels through pytest-benchmark, with its save and compare

Both take their cases and operands from cases.py and let nothing be timed that gate.py has not passed.
"""
