"""`tiny-audio plan`: what a run needs and costs, before anything is downloaded or rented."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiny_audio.errors import UserError, first_line
from tiny_audio.train.command import TrainOverrides

if TYPE_CHECKING:
    from tiny_audio.train.compute import StepCost
    from tiny_audio.train.measured import MeasuredSpeed

GPUS_FILE = Path(__file__).parents[1] / "facts" / "gpus.yaml"
# Share of the data sheet's speed that a tuned run reaches; 0.4-0.5 is what well-kept training code reports.
UTILIZATION = 0.45
# CUDA's context, kernels' workspace, and what the allocator cannot use.
RESERVED_BYTES = 2.0e9
USABLE_SHARE = 0.92
GPU_KEYS = {"memory_gb", "bf16_tflops", "dollars_an_hour"}
NOT_KNOWN = "-"


@dataclass(frozen=True)
class Gpu:
    """`dollars_an_hour` is the price on the day that the table names; `device` what its driver calls it."""

    name: str
    memory_gb: float
    bf16_tflops: float
    dollars_an_hour: float
    device: str = ""

    def largest_batch_seconds(self, fixed_bytes: float, bytes_per_audio_second: float) -> float:
        """Audio in the largest batch that fits; 0 where not even the weights do."""
        free = self.memory_gb * 1e9 * USABLE_SHARE - RESERVED_BYTES - fixed_bytes
        return max(0.0, free / bytes_per_audio_second)

    def flops_per_second(self, utilization: float) -> float:
        """What it computes when it reaches this share of its printed speed."""
        return self.bf16_tflops * 1e12 * utilization


@dataclass(frozen=True)
class GpuTable:
    """`as_of` and `source` are of the prices."""

    gpus: tuple[Gpu, ...]
    as_of: str
    source: str


def read_gpus(path: Path = GPUS_FILE) -> GpuTable:
    """The table of GPUs. Raises UserError for a file that is not one."""
    from omegaconf import OmegaConf

    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        gpus = []
        for name, values in content["gpus"].items():
            device = str(values.pop("device", name))
            if set(values) != GPU_KEYS or not all(float(value) > 0 for value in values.values()):
                raise UserError(f"{path}: {name} needs {', '.join(sorted(GPU_KEYS))}, all above 0.")
            gpus.append(Gpu(str(name), **{key: float(value) for key, value in values.items()}, device=device))
        return GpuTable(tuple(gpus), str(content["prices_as_of"]), str(content["prices_from"]))
    except UserError:
        raise
    except Exception as error:  # a file of any content
        raise UserError(
            f"{path} is not a table of GPUs like {GPUS_FILE} ({type(error).__name__}: {first_line(error)})."
        ) from error


def plan(
    overrides: TrainOverrides = None,
    utilization: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of a GPU's printed speed that the run reaches.")
    ] = UTILIZATION,
    clip_seconds: Annotated[
        float, typer.Option(min=0.5, max=30.0, help="Mean length of the clips, in seconds.")
    ] = 7.0,
    gpus: Annotated[
        Path, typer.Option(help="A table of GPUs and prices to use.", show_default=False)
    ] = GPUS_FILE,
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of a run: its machine's speed is what it was measured to be. Several make it surer.",
            metavar="RUN",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Tell what a run needs before you pay: parameters, memory, time and dollars on GPUs that can be rented.

    Counts what the model computes and keeps by running its code without numbers. Nothing is downloaded where the
    architecture is known (all recipes) or lies on this machine; no GPU is needed.

    \b
    Examples:
      tiny-audio plan +experiments=stage1
      tiny-audio plan +experiments=qwen3_8b training.max_steps=20000 --utilization 0.4
      tiny-audio plan +experiments=stage1 --measured outputs/first-hour
    """
    from tiny_audio.train.config import compose_config

    config = compose_config(overrides or [])
    table = read_gpus(gpus)

    from rich.console import Console

    from tiny_audio.train.build import AUTO, fixed_batch_seconds, loss_weights
    from tiny_audio.train.compute import cost_of_config
    from tiny_audio.train.measured import measured_speeds
    from tiny_audio.train.parameters import print_parameter_table

    speeds = measured_speeds(measured or [])
    console = Console()
    print_parameter_table(config, console)
    settings = config.training
    # Memory is for the steps at the end, which need the most; work is the mean of all steps.
    cost = cost_of_config(config, loss_weights(config, settings.max_steps - 1), clip_seconds)
    work = work_of_config(config, cost, clip_seconds)
    fullest = capped_seconds(settings, fixed_batch_seconds(settings), config.data.max_seconds)
    console.print(_cost_table(cost, fullest))
    console.print(_gpu_table(table, speeds, cost, work, config, utilization, clip_seconds))
    if config.ctc.alone_share:
        typer.echo(
            f"The decoder rests in {config.ctc.alone_share:.0%} of the steps: the mean of all steps is"
            f" {work / 1e9:,.1f} GFLOP a second of audio."
        )
    if config.data.features_cache is not None:
        typer.echo("The encoder does not run: its output comes from data.features_cache.")
    if settings.batch_seconds == AUTO:
        steps = (
            f"{settings.max_steps:,} steps of {settings.gradient_accumulation_steps} of the largest batches that fit "
            f"by count, of at most {settings.per_device_train_batch_size} clips of {clip_seconds:g} s: "
            "training.batch_seconds=auto tries them on the GPU itself, and takes somewhat less.\n"
        )
    else:
        batch_seconds = capped_seconds(settings, settings.batch_seconds, clip_seconds)
        step_seconds = batch_seconds * settings.gradient_accumulation_steps
        steps = (
            f"{settings.max_steps:,} steps of {step_seconds:,.0f} s:"
            f" {settings.max_steps * step_seconds / 3600:,.0f} hours of audio, in clips of {clip_seconds:g} s.\n"
        )
    typer.echo(steps, nl=False)
    for speed in speeds:
        typer.echo(
            f"Measured: {speed.device} in {speed.precision}, {speed.flops_per_second / 1e12:,.3g} TFLOP/s"
            f" ({speed.said})."
        )
    typer.echo(
        f"Time {'elsewhere ' if speeds else ''}is extrapolated: counted work at {utilization:.0%} of the printed bf16"
        " speed, nothing measured on these GPUs. Evaluations come on top.\nMemory is counted, too, with"
        f" {RESERVED_BYTES / 1e9:g} GB set aside and {1 - USABLE_SHARE:.0%} not used.\n"
        f"Prices of {table.as_of} ({table.source}); edit {gpus}."
    )


def capped_seconds(settings: Any, most_seconds: float, clip_seconds: float) -> float:
    """Audio in a batch of clips of this length: `most_seconds`, or what the most clips of a batch hold."""
    return min(most_seconds, settings.per_device_train_batch_size * clip_seconds)


def work_of_config(config: Any, cost: Any, clip_seconds: float) -> float:
    """FLOP a second of audio in the mean of all steps, given the `cost` of the last one."""
    from tiny_audio.train.build import loss_weights
    from tiny_audio.train.compute import cost_of_config

    share = config.ctc.alone_share
    costs = [(1 - share, cost)]
    if share:
        costs.append((share, cost_of_config(config, loss_weights(config), clip_seconds)))
    return sum(
        part * (each.flops_per_audio_second + each.repeated_flops_per_audio_second) for part, each in costs
    )


def _cost_table(cost: Any, batch_seconds: float) -> Any:
    from rich.table import Table

    table = Table(title=f"Work, and memory for a batch of {batch_seconds:g} s", title_justify="left")
    table.add_column("part")
    table.add_column("GFLOP a second of audio", justify="right")
    table.add_column("GB", justify="right")
    for name, num_bytes in cost.weight_bytes.items():
        table.add_row(name, "", f"{num_bytes / 1e9:.2f}")
    table.add_section()
    for part in cost.parts:
        table.add_row(part.part, f"{part.flops / 1e9:.1f}", f"{part.kept_bytes * batch_seconds / 1e9:.2f}")
    working = max(part.working_bytes for part in cost.parts)
    if working:
        repeated = f"{cost.repeated_flops_per_audio_second / 1e9:.1f}"
        table.add_row(
            "layers computed again, one at a time", repeated, f"{working * batch_seconds / 1e9:.2f}"
        )
    table.add_section()
    total_bytes = cost.fixed_bytes + cost.bytes_per_audio_second * batch_seconds
    total_flops = cost.flops_per_audio_second + cost.repeated_flops_per_audio_second
    table.add_row("total", f"{total_flops / 1e9:.1f}", f"{total_bytes / 1e9:.2f}")
    return table


def _gpu_table(
    gpus: GpuTable,
    speeds: list[MeasuredSpeed],
    cost: StepCost,
    work: float,
    config: Any,
    utilization: float,
    clip_seconds: float,
) -> Any:
    """Of each GPU, and of each machine that was measured and is none of them."""
    from rich.table import Table

    from tiny_audio.train.build import AUTO, fixed_batch_seconds

    settings = config.training
    tried = settings.batch_seconds == AUTO

    def time_of(flops_per_second: float, batch_seconds: float) -> tuple[float, float, float]:
        """Seconds a step, audio hours an hour, and hours."""
        step_seconds = batch_seconds * settings.gradient_accumulation_steps
        speed = flops_per_second / work
        return step_seconds / speed, speed, settings.max_steps * step_seconds / speed / 3600

    def cells(measured: MeasuredSpeed | None, step: float, speed: float, hours: float) -> list[str]:
        error = f" ±{measured.error:.0%}" if measured else ""
        return [f"{step:.2f}", f"{speed:,.0f}", f"{hours:,.1f}{error}"]

    table = Table(title="On one GPU", title_justify="left")
    headings = ("GPU", "GB", "largest batch", "seconds a step", "audio hours an hour", "hours", "dollars")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "GPU" else "right")
    own = {speed.device: speed for speed in speeds if speed.precision == "bf16"}
    for gpu in gpus.gpus:
        largest = gpu.largest_batch_seconds(cost.fixed_bytes, cost.bytes_per_audio_second)
        if largest < config.data.max_seconds:  # not even one clip of the longest allowed
            table.add_row(gpu.name, f"{gpu.memory_gb:g}", "too small", *[NOT_KNOWN] * 4)
            continue
        if tried:
            largest = capped_seconds(settings, largest, clip_seconds)
        allowed = largest if tried else settings.batch_seconds
        exceeds = largest < capped_seconds(settings, allowed, config.data.max_seconds)
        measured = own.get(gpu.device)
        rate = measured.flops_per_second if measured else gpu.flops_per_second(utilization)
        times = time_of(rate, capped_seconds(settings, allowed, clip_seconds))
        table.add_row(
            gpu.name,
            f"{gpu.memory_gb:g}",
            f"{largest:,.0f} s{' !' if exceeds else ''}",
            *cells(measured, *times),
            f"{times[-1] * gpu.dollars_an_hour:,.2f}",
        )
    listed = {gpu.device for gpu in gpus.gpus}
    for speed in speeds:
        if speed.device in listed and speed.precision == "bf16":
            continue
        allowed = fixed_batch_seconds(settings) if tried else settings.batch_seconds
        times = time_of(speed.flops_per_second, capped_seconds(settings, allowed, clip_seconds))
        name = f"{speed.device}, {speed.precision}"
        table.add_row(name, NOT_KNOWN, NOT_KNOWN, *cells(speed, *times), NOT_KNOWN)
    if not tried:
        table.caption = (
            "! less than training.batch_seconds: lower it and raise training.gradient_accumulation_steps;"
            " the hours stay"
        )
    table.caption_justify = "left"
    return table
