"""python -m convlib: what this machine offers, what there is, and what would run a convolution and why.

One function below is one command. A wrong argument ends in one line and exit code 2.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from functools import wraps
from pathlib import Path

import click

import convlib

from . import accuracy, device, dispatch, layers
from .errors import UnsupportedError
from .problem import ACTIVATIONS, COMPLEX_DTYPES, DTYPES, LAYOUTS, PRECISIONS, WEIGHT_LAYOUTS, check_choice

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(convlib.__version__, prog_name="convlib")
def main():
    """Two-dimensional convolution in kernels that a person can read."""


class WrongArgument(click.ClickException):
    """One line, without the usage text of click's own."""

    exit_code = 2


def one_line_errors(command):
    """convlib's own errors are the user's arguments, or packages to install: one line, exit code 2."""

    @wraps(command)
    def run(*args, **keywords):
        try:
            return command(*args, **keywords)
        except (ValueError, TypeError, UnsupportedError, ImportError) as error:
            raise WrongArgument(str(error)) from error

    return run


@main.command()
@as_json
def info(as_json):
    """What this machine offers: versions, processor, threads, GPUs, kernel families."""
    found = convlib.info()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    table = new_table(None, "", "", show_header=False)
    for name, value in found.items():
        if isinstance(value, dict):
            value = "\n".join(f"{key} {text}" for key, text in value.items())
        elif isinstance(value, list):
            value = "\n".join(value) or "none is visible"
        table.add_row(name, str(value))
    show(table)


@main.command()
@as_json
def kernels(as_json):
    """Every listed kernel: name, idea, file, and where it was verified."""
    listed = convlib.kernels()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(facts) for facts in listed], indent=2))
        return
    table = new_table(f"{len(listed)} kernels", "kernel", "idea")
    for facts in listed:
        table.add_row(facts.name, "\n".join([facts.idea, *facts.found]))
    show(table)


DEFAULTS = {"stride": "1", "padding": "0", "dilation": "1", "groups": "1"}
SHAPES = (
    click.option("--x", help="Shape of x in --layout's order, as 1x64x56x56."),
    click.option("--w", help="Shape of w in --weight-layout's order, as 64x64x3x3."),
    click.option("--layer", help="Instead of --x and --w: a layer of a known network, as vgg16:3 or vgg16:NAME."),
    click.option("--stride", default=DEFAULTS["stride"], show_default=True, help="As 2 or 2x1 (rows x columns)."),
    click.option(
        "--padding",
        default=DEFAULTS["padding"],
        show_default=True,
        help='As 1, 1x2, 0,1x0,1 (top,bottom x left,right), "same".',
    ),
    click.option("--dilation", default=DEFAULTS["dilation"], show_default=True, help="As 2 or 2x1."),
    click.option("--groups", type=int, default=DEFAULTS["groups"], show_default=True),
)
CONVOLUTION = (
    *SHAPES,
    click.option("--dtype", type=click.Choice([*DTYPES, *COMPLEX_DTYPES]), default="float32", show_default=True),
    click.option("--layout", type=click.Choice(LAYOUTS), default="NCHW", show_default=True),
    click.option("--weight-layout", type=click.Choice(WEIGHT_LAYOUTS), default="OIHW", show_default=True),
    click.option("--bias/--no-bias", default=False, show_default=True),
    click.option("--residual/--no-residual", default=False, show_default=True),
    click.option("--activation", type=click.Choice([a for a in ACTIVATIONS[:-1] if a]), default=None),
    click.option("--device", "place", default="cpu", show_default=True, help="cpu, cuda:0, or a target such as sm_80."),
    click.option("--backend", default="auto", show_default=True),
    click.option("--algorithm", default="auto", show_default=True),
    click.option("--precision", type=click.Choice([p for p in PRECISIONS if p]), default=None, help="Of float32."),
    click.option("--max-error", type=float, default=accuracy.DEFAULT_MAX_ERROR, show_default=True),
    click.option("--workspace-limit", type=int, default=None, help="Bytes of scratch memory [no limit]."),
    as_json,
)


def asks(options):
    """What gives a command these options: SHAPES, or, for `explain` and `tune`, all of CONVOLUTION."""

    def with_options(command):
        for option in reversed(options):
            command = option(command)
        return command

    return with_options


@main.command()
@asks(CONVOLUTION)
@one_line_errors
def explain(as_json, **options):
    """Every kernel against one convolution: chosen, possible with its time, or why not."""
    x, w, keywords = asked(**options)
    print_explanation(convlib.explain(x, w, **keywords), as_json)


@main.command()
@asks(CONVOLUTION)
@click.option("--planned/--single", default=False, show_default=True, help="Weights packed before, as a plan has them.")
@one_line_errors
def tune(as_json, planned, **options):
    """Measure the kernels that could run one convolution, and keep the times for calls with tune=True."""
    x, w, keywords = asked(**options)
    print_explanation(convlib.tune(x, w, planned=planned, **keywords), as_json)


def asked(place, **options):
    """Shapes of x and w and keywords of `convlib.explain`."""
    x, w, keywords = shapes_asked(**options)
    return x, w, {**keywords, "on": device.named(place)}


def shapes_asked(x, w, layer, stride, padding, dilation, **keywords):
    """Shapes of x and w, and keywords: what a layer, if one is named, or the options say, and what came."""
    if layer is not None:
        if x or w:
            raise WrongArgument("--layer: it says --x and --w already; give one or the other")
        check_left_out(stride=stride, padding=padding, dilation=dilation, groups=keywords["groups"])
        return problem_of_layer(layer, keywords)
    if not (x and w):
        raise WrongArgument("--x and --w needed, as --x 1x64x56x56 --w 64x64x3x3, or --layer, as --layer vgg16:3")
    keywords |= {
        "stride": numbers("--stride", stride),
        "padding": padding if padding in ("same", "valid") else sides("--padding", padding),
        "dilation": numbers("--dilation", dilation),
    }
    return shape("--x", x), shape("--w", w), keywords


def check_left_out(**options):
    """What a layer says already is not said otherwise beside it."""
    said = {name: str(value) for name, value in options.items()}
    for name, default in DEFAULTS.items():
        if said[name] != default:
            raise WrongArgument(f"--layer: it says --{name} already; leave out --{name} {said[name]}")


def print_explanation(explanation, as_json):
    if as_json:
        click.echo(json.dumps(plain(explanation), indent=2))
        return
    click.echo(explanation)


@main.command()
@click.option("--kernel", required=True, help="A listed GPU kernel, as cupy_raw.tiled.")
@asks(SHAPES)
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
@click.option("--layout", type=click.Choice(LAYOUTS), default="NCHW", show_default=True)
@click.option("--target", type=int, default=80, show_default=True, help="80 is sm_80.")
@click.option("--threads", default=16_384, show_default=True, help="About how many threads of each launch to execute.")
@one_line_errors
def profile(kernel, dtype, layout, target, threads, **shapes):
    """Execute a GPU kernel's compiled code in the emulator and count what it does; no GPU is needed."""
    from .emulator import profile
    from .problem import make_problem, named_dtype

    x, w, keywords = shapes_asked(**shapes, layout=layout, bias=False)
    passes = dispatch.kernel(kernel).passes if kernel in profile.gpu_kernels() else ("forward",)
    bias = keywords.pop("bias") and passes[0] == "forward"
    problem = make_problem(x, w, named_dtype(dtype), has_bias=bias, pass_=passes[0], **keywords)
    click.echo(profile.table(profile.profile(kernel, problem, target, threads)))


@main.command()
@click.option("--kernel", "kernels", multiple=True, help="A listed GPU kernel; may be repeated [all].")
@click.option("--target", "targets", type=int, multiple=True, help="80 is sm_80; may be repeated [all].")
@click.option("--dtype", "dtypes", type=click.Choice(DTYPES), multiple=True, help="May be repeated [all].")
@click.option("--csv", "path", type=click.Path(dir_okay=False), help="Write the rows to this file too.")
@click.option("--baseline", type=click.Path(exists=True, dir_okay=False), help="Compare with this CSV; a loss exits 1.")
@one_line_errors
def report(kernels, targets, dtypes, path, baseline):
    """Registers, spills, occupancy and the main loop of every GPU kernel, from its machine code; no GPU is needed."""
    from . import compiling, report

    rows = list(report.rows(kernels or None, targets or compiling.TARGETS, dtypes or report.DTYPES))
    click.echo(report.table(rows))
    if path:
        report.write_csv(path, rows)
    lost = report.losses(rows, report.read_csv(baseline)) if baseline else []
    if lost:
        raise click.ClickException("worse than the baseline:\n  " + "\n  ".join(lost))


@main.command()
@click.option("--kernel", "kernels", multiple=True, help="A listed kernel, as cupy_raw.tiled; may be repeated [all].")
@click.option("--device", "place", help="Only on cpu, cuda:0, or, with --emulate, as a target such as sm_90 [all].")
@click.option("--emulate", is_flag=True, help="GPU kernels in the PTX emulator, not on a GPU.")
@click.option("--quick", is_flag=True, help="A few problems for each kernel, not all.")
@click.option("--sanitize", is_flag=True, help="GPU kernels under compute-sanitizer, which must be on the path.")
@click.option(
    "--limit",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="Seconds that one problem may take, compilation included.",
)
@click.option("--restart", is_flag=True, help="Begin anew, not where an interrupted run stopped.")
@as_json
@one_line_errors
def verify(kernels, place, emulate, quick, sanitize, limit, restart, as_json):
    """Check every kernel on what this machine has; exits 1 if one is wrong. What it finds is kept.

    Each kernel runs in a process of its own: values against the reference, the same bits twice, nothing else written.
    """
    from .verification import children, rows

    if sanitize and not shutil.which(children.SANITIZER[0]):
        raise WrongArgument(f"--sanitize: {children.SANITIZER[0]} needed on the path; it comes with the CUDA toolkit")
    names = [name for name in dispatch.KERNELS if name in kernels or not kernels]
    for name in kernels:
        check_choice("--kernel", name, dispatch.KERNELS)
    places = rows.places(place, emulate)
    missing = rows.unchecked(names, places)
    if kernels and missing:
        raise WrongArgument("; ".join(f"--kernel: {name} cannot be checked: {why}" for name, why in missing.items()))
    extent = "quick" if quick else "full"
    todo = {place: rows.todo(names, place, extent) for place in places}
    results = {place: [] for place in places}
    for place, result in with_progress(todo, children.Settings(extent, sanitize, limit), restart):
        results[place].append(result)
    (print_results_as_json if as_json else print_results)(results, missing)
    if any(not result.passed for found in results.values() for result in found):
        raise SystemExit(1)


@main.command()
@click.option(
    "--results",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("results"),
    help="The folder that `python -m benchmarks gpu` writes its own into [results].",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@one_line_errors
def calibrate(results, dry_run):
    """Fit the GPU cost model to measured results; says how far its predictions are off before and after."""
    from . import calibration

    files = calibration.results_files(results)
    if not files:
        click.echo(f"no results of a GPU in {results}: every time stays predicted from counts and data sheets")
        return
    constants, fits = calibration.constants_from(files)
    table = new_table(f"fitted to {len(files)} results of GPUs", "kernel", "cases", "WAITING", "", "off by", "")
    for fit in fits:
        numbers = (f"{fit.waiting_before:g}", f"-> {fit.waiting:g}", f"{fit.error_before:.2f}", f"-> {fit.error:.2f}")
        table.add_row(fit.kernel, str(fit.cases), *numbers)
    show(table)
    for capability, clock in constants["clock"].items():
        bandwidth = constants["memory_per_sm"][capability]
        click.echo(f"compute capability {capability}: {clock / 1e9:g} GHz, {bandwidth / 1e9:g} GB/s a multiprocessor")
    click.echo("off by: the factor between predicted and measured time, up or down; kernels not listed stay predicted")
    if dry_run:
        return
    changed = calibration.write(constants, fits, files, results)
    click.echo(f"{'written' if changed else 'nothing changed in'}: {calibration.constants_file()}")


def with_progress(todo, settings, restart):
    """The results of `todo`, with a bar on stderr while they are awaited."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .verification.runs import verified

    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=sum(map(len, todo.values())))
        try:
            for found in verified(todo, settings, restart, lambda text: progress.update(task, description=text)):
                progress.advance(task)
                yield found
        except KeyboardInterrupt:
            click.echo("interrupted; the same command goes on from here", err=True)
            raise SystemExit(130) from None


def print_results(results, missing):
    from rich.text import Text

    for place, found in results.items():
        table = new_table(f"on {place}", "kernel", "pass", "dtype", "problems", "verdict")
        for result in found:
            row, style = result.row, "" if result.passed else "red"
            cells = (row.kernel, row.pass_, row.dtype, str(result.problems), "right" if result.passed else "WRONG")
            table.add_row(*(Text(cell, style) for cell in cells))
        show(table)
        for result in found:
            if not result.passed:
                click.echo(f"{result.row.key}, {result.problem}: {result.fault}")
    for name, why in missing.items():
        click.echo(f"{name} was not checked: {why}")
    found = [result for of_place in results.values() for result in of_place]
    wrong, before = sum(not result.passed for result in found), sum(result.before for result in found)
    going_on = f"; {before} of them found before, by the run that was interrupted" if before else ""
    click.echo(f"{len(found) - wrong} of {len(found)} right, {wrong} wrong{going_on}")


def print_results_as_json(results, missing):
    from .verification.records import identity

    listed = [
        {
            "device": identity(place),
            **dataclasses.asdict(result.row),
            "passed": result.passed,
            "problems": result.problems,
            "seconds": result.seconds,
            "problem": result.problem,
            "fault": result.fault,
        }
        for place, found in results.items()
        for result in found
    ]
    click.echo(json.dumps({"results": listed, "not_checked": missing}, indent=2))


def problem_of_layer(name, keywords):
    """The shapes and parameters of a layer that layers.json has; in NHWC where that, or the option, says so."""
    problem = layers.layer_called(name).problem
    if problem.layout == "NHWC":
        keywords = {**keywords, "layout": "NHWC"}
    parameters = {name: getattr(problem, name) for name in ("stride", "padding", "dilation", "groups")}
    x = problem.x_shape if keywords["layout"] == "NCHW" else tuple(problem.x_shape[axis] for axis in (0, 2, 3, 1))
    keywords = {**keywords, **parameters, "weight_layout": "OIHW", "bias": problem.has_bias or keywords["bias"]}
    return x, problem.w_shape, keywords


def shape(option, text):
    if not re.fullmatch(r"\d+(x\d+)*", text):
        raise WrongArgument(f"{option}: sizes joined by x needed, as 1x64x56x56, got {text!r}")
    return tuple(int(size) for size in text.split("x"))


def numbers(option, text):
    """An int, or a pair joined by x."""
    if not re.fullmatch(r"\d+(x\d+)?", text):
        raise WrongArgument(f"{option}: a number or two joined by x needed, as 2 or 2x1, got {text!r}")
    found = tuple(int(number) for number in text.split("x"))
    return found if len(found) == 2 else found[0]


def sides(option, text):
    """As `numbers`, each of which may be two joined by a comma: before and after."""
    if "," not in text:
        return numbers(option, text)
    if not re.fullmatch(r"\d+,\d+x\d+,\d+", text):
        raise WrongArgument(f"{option}: top,bottom x left,right needed, as 0,1x0,1, got {text!r}")
    return tuple(tuple(int(number) for number in pair.split(",")) for pair in text.split("x"))


def plain(explanation):
    """An explanation in the types that JSON has."""
    problem = {**dataclasses.asdict(explanation.problem), "dtype": explanation.problem.dtype.name}
    return {
        "problem": problem,
        "complex_dtype": explanation.complex_dtype,
        "device": dataclasses.asdict(explanation.device),
        "chosen": explanation.chosen,
        "candidates": [{**dataclasses.asdict(c), "verdict": explanation.verdict(c)} for c in explanation.candidates],
    }


def new_table(title, *columns, show_header=True):
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=show_header)
    for column in columns:
        justify = "right" if column in ("time", "workspace", "problems") else "left"
        whole = column in ("kernel", "pass", "dtype", "problems")
        table.add_column(column, overflow="fold", no_wrap=whole, justify=justify)
    return table


def show(table):
    from rich.console import Console

    Console(highlight=False).print(table)


if __name__ == "__main__":
    main(prog_name="python -m convlib")
