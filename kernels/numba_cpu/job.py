"""A kernel's `run` with its look-ups done: for a problem, and for arrays of certain strides wherever they lie.

    job = blocked.job(problem, device, x, w, y, bias, residual)
    job.run(x, w, y, bias, residual, workspace)            # again and again, with arrays of the same strides

Finding what was prepared for a problem and packing 17 strides takes longer than a small layer does. Measured on two
Zen 5 cores: `blocked.run` 2.4 microseconds beyond its kernel, `job.run` 1.1, of which starting the tasks takes 0.6.
"""

from dataclasses import dataclass

from .call import pack_addresses, pack_strides
from .compilation import Compiled
from .threads import run_tasks


@dataclass(slots=True)
class Job:
    """Tasks of a compiled task_loop. fields: the call's record behind the addresses. before: as in run_tasks."""

    loop: Compiled
    fields: bytes
    tasks: int
    threads: int
    before: int

    def run(self, x, w, y, bias=None, residual=None, workspace=None):
        call = pack_addresses(x, w, y, bias, residual, workspace) + self.fields
        run_tasks(self.loop, call, self.tasks, self.threads, self.before)


def job_of(fields, loop, tasks, threads, x, w, y, bias, residual, before=0) -> Job:
    """fields: as pack_call's."""
    return Job(loop, pack_strides(x, w, y, bias, residual) + fields, tasks, threads, before)


@dataclass(slots=True)
class WeightGradJob:
    """The same for a weight gradient, whose record has grad_w as w and grad_y as the residual."""

    job: Job

    def run(self, x, grad_y, grad_w, bias=None, residual=None, workspace=None):
        self.job.run(x, grad_w, x, None, grad_y, workspace)


def weight_grad_job_of(fields, loop, tasks, threads, x, grad_y, grad_w, before=0) -> WeightGradJob:
    return WeightGradJob(job_of(fields, loop, tasks, threads, x, grad_w, x, None, grad_y, before))
