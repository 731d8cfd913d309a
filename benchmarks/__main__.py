"""python -m benchmarks: measure what this machine has, beside the peers that are installed."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import click

from convlib import layers
from convlib.device import TARGETS, named
from convlib.machine import visible_gpus
from convlib.problem import DTYPES, LAYOUTS

from . import (
    cases,
    engine,
    gpu,
    issued,
    layer_tables,
    machine,
    measuring,
    memory,
    peaks,
    readme_table,
    rehearsal,
    results,
    scaling,
    signal,
    simulated_cycles,
    stages,
    startup,
    tables,
    verified,
    visit,
    waves,
)
from .cores import Cores

ALL_SUITES = cases.suites() + cases.gradient_suites()
OUTPUT = click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results/local"),
    show_default=True,
    help="Folder for CSV, JSON, the report and its pictures.",
)


def options(command):
    """The options that every measuring command has."""
    for option in reversed(
        (
            click.option("--quick", is_flag=True, help="A dozen cases of every kind, within two minutes."),
            click.option("--suite", "suites", multiple=True, type=click.Choice(ALL_SUITES), help="Only these."),
            click.option("--backward", is_flag=True, help="The gradients, on batches, instead of the forward passes."),
            click.option("--case", "names", multiple=True, help="Only cases whose name contains this."),
            click.option("--peers/--no-peers", "with_peers", default=True, help="Measure the installed peers too."),
            click.option("--kernels", "each_kernel", is_flag=True, help="Measure every kernel of ours by itself too."),
            click.option("--threads", type=click.IntRange(1), default=None, help="Threads for everybody [all]."),
            click.option("--rounds", type=click.IntRange(1), default=None, help="Rounds of the engine."),
            click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Times as many images."),
            click.option("--dtype", type=click.Choice(DTYPES), default="float32", help="Of all arrays [float32]."),
            click.option("--layout", type=click.Choice(LAYOUTS), default=None, help="Of x and y [each case's own]."),
            click.option("--minutes", type=float, default=None, help="Begin no case after so many minutes."),
            click.option("--add", is_flag=True, help="Keep the other suites' rows that are in the folder already."),
            OUTPUT,
        )
    ):
        command = option(command)
    return command


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@options
@click.pass_context
def main(context, **chosen):
    """Measure convlib on this machine's GPU if it has one, otherwise on its CPU."""
    if context.invoked_subcommand is None:
        run = measuring.run_cpu if gpu.unavailable() else measuring.run_gpu
        run(**chosen)


@main.command("cpu")
@options
def cpu_command(**chosen):
    """NumPy arrays on the CPU, beside PyTorch, ONNX Runtime, OpenVINO, ncnn, OpenCV, MNN and SciPy."""
    measuring.run_cpu(**chosen)


@main.command("gpu")
@click.option("--minutes", type=click.FloatRange(min=0.5), default=10.0, show_default=True, help="For all of it.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder [results/GPU-DATE].")
@click.option("--kernel", "kernels", multiple=True, help="Verify only these, as cupy_raw.tiled; may be repeated [all].")
@click.option("--suite", "suites", multiple=True, type=click.Choice(cases.suites()), help="Only layers of these.")
@click.option("--case", "names", multiple=True, help="Only layers whose name contains this.")
@click.option("--rehearse", is_flag=True, help="On stand-ins for a GPU, to see that it works; nothing is measured.")
def gpu_command(**chosen):
    """A visit to a GPU in one command: verify, layer tables beside cuDNN and PyTorch, counters, the model's error.

    The most valuable comes first; the same command goes on where an earlier one stopped.
    """
    visit_gpu(**chosen)


@main.command("startup")
@OUTPUT
def startup_command(output):
    """Import, first call with and without compiled code on disk, and the cost of a call."""
    seconds = startup.measure()
    measuring.keep(output, "startup", seconds)
    tables.console().print(tables.startup_table(seconds))


@main.command("memory")
@OUTPUT
@click.option("--suite", "suites", multiple=True, type=click.Choice(cases.suites()), help="Only these.")
def memory_command(output, suites):
    """Peak resident memory of conv2d beyond its arguments and result, a process for each case (Linux)."""
    found = {}
    chosen = measuring.chosen_cases(False, suites)
    with measuring.progress_bar() as progress:
        for case in progress.track(chosen, description="memory"):
            found.setdefault(case.suite, {})[case.name] = memory.extra_bytes(case)
    measuring.keep(output, "memory", found)
    tables.console().print(tables.memory_table(found))


@main.command("scaling")
@OUTPUT
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Rounds of the engine.")
def scaling_command(output, rounds):
    """One thread against all, on the compute-bound 3x3 layers."""
    threads = measuring.set_threads(None)
    chosen = [case for case in measuring.chosen_cases(False, ()) if scaling.compute_bound(case)]
    with measuring.progress_bar() as progress:
        settings = measuring.engine_settings(engine.Settings(), rounds, Cores(threads))
        found = [scaling.measure(case, settings, threads) for case in progress.track(chosen, description="scaling")]
    measuring.keep(output, "scaling", [asdict(one) for one in found])
    tables.console().print(tables.scaling_table([asdict(one) for one in found]))


@main.command("stages")
@OUTPUT
@click.option("--suite", "suites", multiple=True, type=click.Choice(cases.suites()), help="Only these.")
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Rounds of the engine.")
def stages_command(output, suites, rounds):
    """Where each layer's time goes: packing, transforms, multiplication, and how much of it multiply-adds must take."""
    threads = measuring.set_threads(None)
    settings = measuring.engine_settings(engine.Settings(), rounds, Cores(threads))
    peak = threads * peaks.measure(threads)["core_gflops"]
    chosen = [case for case in measuring.chosen_cases(False, suites) if suites or case.suite != cases.FILTERS]
    with measuring.progress_bar() as progress:
        found = [asdict(stages.measure(case, settings, peak)) for case in progress.track(chosen, description="stages")]
    measuring.keep(output, "stages", found)
    tables.console().print(tables.stages_table(found))


@main.command("signal")
@OUTPUT
@click.option("--threads", type=click.IntRange(1), default=None, help="Threads for everybody [all].")
@click.option("--rounds", type=click.IntRange(1), default=None, help="Rounds of the engine.")
def signal_command(output, threads, rounds):
    """convlib.signal beside SciPy's and OpenCV's convolutions: 256 pairs in one call, 1080p with large kernels."""
    threads = measuring.set_threads(threads)
    settings = measuring.engine_settings(signal.SETTINGS, rounds, Cores(threads))
    with measuring.progress_bar() as progress:
        works = progress.track(signal.works(), description="signal")
        found = [one for work in works for one in signal.measure(work, settings, threads)]
    about = {"machine": machine.describe(), "settings": measuring.run_settings(settings) | {"threads": threads}}
    measuring.keep(output, "signal", about | {"rows": [asdict(one) for one in found]})
    for table in tables.signal_tables(found, signal.bars(found)):
        tables.console().print(table)


@main.command("networks")
@OUTPUT
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Rounds of the engine.")
def networks_command(output, rounds):
    """Whole networks: ResNet-50 on an image, a training step of ResNet-18, PyTorch's convolutions beside convlib's."""
    from . import inference, training  # they need PyTorch

    threads = measuring.set_threads(None)
    settings = measuring.engine_settings(engine.Settings(), rounds, Cores(threads))
    found = {module.NAME: asdict(module.measure(settings, threads)) for module in (inference, training)}
    measuring.keep(output, "networks", found)
    tables.console().print(tables.networks_table(found))


@main.command("waves")
@click.option("--device", "name", type=click.Choice(list(TARGETS)), default="sm_80", show_default=True)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images.")
@click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), default="NCHW", show_default=True)
@click.option("--product", type=click.Choice(list(waves.PRODUCTS)), default="implicit_gemm", show_default=True)
@click.option("--pass", "pass_", type=click.Choice(waves.PASSES), default="forward", show_default=True)
def waves_command(name, batch, layout, product, pass_):
    """How every layer fills a GPU, its predicted time and what limits it; exit code 1 if one leaves too much idle."""
    place = named(name)
    found = waves.rows(place, batch, layout, product=product, pass_=pass_)
    tables.console().print(waves.table(found, place, batch, layout))
    idle = [row for row in found if not row.passes]
    if idle:
        count = "1 layer fills" if len(idle) == 1 else f"{len(idle)} layers fill"
        raise SystemExit(f"{count} less than {waves.waves.FULL:.0%}; the first: {idle[0].layer}")


@main.command("issued")
@click.option("--device", "name", type=click.Choice(list(TARGETS)), default="sm_80", show_default=True)
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Images.")
@click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), default="NCHW", show_default=True)
@click.option("--network", "networks", multiple=True, type=click.Choice(["resnet50", "vgg16"]), help="Only these.")
@click.option("--csv", "path", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the table too.")
def issued_command(name, batch, layout, networks, path):
    """Multiply-adds among all instructions of the 3x3 layers, counted in the emulator; exit code 1 below the bar."""
    place, least = named(name), issued.BARS.get(batch, 0)
    chosen = issued.layers_of(networks or issued.NETWORKS, batch, layout)
    with measuring.progress_bar() as progress:
        found = [(layer, issued.share(issued.KERNEL, problem, place)) for layer, problem in progress.track(chosen)]
    tables.console().print(issued.table(found, place, batch, layout))
    if path:
        issued.write_csv(path, found)
    low = [layer for layer, one in found if one.of_call < least]
    if low:
        raise SystemExit(f"{len(low)} layers have less than {least:.0%}; the first: {low[0]}")


@main.command("simulated")
@click.argument("host", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--kernel", "kernels", multiple=True, help="As cupy_raw.implicit_gemm.")
@click.option("--cutlass", "programs", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--layer", "layers_", multiple=True, required=True, help="As resnet50:64x56x56-64-3x3.")
@click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), default="NCHW", show_default=True, help="Of ours.")
@click.option("--images", type=click.IntRange(min=1), default=1, show_default=True, help="In each layer's batch.")
@click.option("--part", type=click.IntRange(min=1), default=1, show_default=True, help="Of the channels 1 in so many.")
@click.option("--timing-only", is_flag=True, help="Issue multiply-adds, do not compute them: half the time.")
@OUTPUT
def simulated_command(host, config, kernels, programs, layers_, layout, images, part, timing_only, output):
    """Cycles in GPGPU-Sim, given its HOST program and CONFIG: benchmarks/simulated/README.md says how to build them."""
    found = []
    for layer in layers_:
        folder = output / "simulated" / layer.replace("/", "_")
        problem = simulated_cycles.part_of(layers.layer_called(layer).problem, images, part)
        for one in kernels:
            settings = host, config, folder / one, timing_only
            row = simulated_cycles.ours(one, replace(problem, layout=layout), *settings)
            found.append((f"{one}, {layout}", layer, row))
        for program in programs:
            settings = host, config, folder / program.name, timing_only
            row = simulated_cycles.cutlass(program, replace(problem, layout="NHWC"), *settings)
            found.append((f"{simulated_cycles.CUTLASS} {program.name}, NHWC", layer, row))
    tables.console().print(simulated_cycles.table(found))


@main.command("report")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report_command(folder):
    """Draw the report again from FOLDER/results.json."""
    from . import report

    report.write(results.read(folder / "results.json"), folder)
    click.echo(folder / "report.html")


@main.command("cards")
@click.option("--readme", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=Path("README.md"))
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), default=Path("results"))
def cards_command(readme, results):
    """Write README's table of the cards on which each kernel has been verified, from what lies in results/."""
    readme.write_text(readme_table.with_table(readme.read_text(), results))
    click.echo(readme)


def visit_gpu(minutes, output, kernels, suites, names, rehearse):
    place = rehearsal.place() if rehearse else first_gpu()
    listed = verified.gpu_kernels(place)
    for name in kernels:
        if name not in listed:
            raise click.UsageError(f"--kernel: one of {', '.join(listed)} needed, got {name}")
    chosen = [case for case in layer_tables.all_cases() if not suites or case.suite in suites]
    chosen = [case for case in chosen if not names or any(name in case.name for name in names)]
    folder = output or Path("results") / visit.folder_name(place, rehearse)
    with measuring.progress_bar() as progress:
        task = progress.add_task("", total=len(visit.STAGES))
        note = lambda text: progress.update(task, description=text)  # noqa: E731
        try:
            going = visit.Visit(folder, place, minutes, list(kernels) or listed, chosen, rehearse, note)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        progress.console.print(f"{place}, {minutes:g} minutes, into {folder}", highlight=False)
        for name, what in going.state["missing"].items():
            progress.console.print(f"{name} is missing; without it: not {what}", highlight=False)
        try:
            for name, state in visit.stages(going):
                progress.advance(task)
                progress.console.print(f"{name}: {state}", highlight=False)
        except KeyboardInterrupt:
            click.echo("interrupted; the same command goes on from here", err=True)
            raise SystemExit(130) from None
    wrong = [one for one in going.read("verified", []) if not one["right"]]
    for one in wrong:
        click.echo(f"WRONG: {one['kernel']} {one['pass']} {one['dtype']}, {one['problem']}: {one['fault']}")
    click.echo(f"please send {folder} in an issue" if not rehearse else f"a rehearsal; its results lie in {folder}")
    if wrong:
        raise SystemExit(1)


def first_gpu():
    found = visible_gpus()
    if not found:
        raise click.ClickException(f"no GPU to measure on: {gpu.unavailable()}; --rehearse goes through it without one")
    return found[0]


if __name__ == "__main__":
    main()
