"""`tiny-audio train` and `tiny-audio cache-features`."""

from __future__ import annotations

from typing import Annotated

import typer

TrainOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="+experiments=NAME and key=value pairs, as for train.",
        metavar="[OVERRIDE]...",
        show_default=False,
    ),
]


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="+experiments=NAME and key=value pairs.", metavar="[OVERRIDE]...", show_default=False
        ),
    ] = None,
) -> None:
    """Train a speech recogniser and measure it on voices that it never heard.

    Without arguments this is the nano recipe: small towers with random weights, the corpus inside the package,
    minutes on two CPU cores, no network. Other recipes: small, mac_minimal, stage1, projector_only, mosa, qwen3_8b,
    archive/lora_decoder. Every key of the config can be set; a wrong one is refused with the nearest right one.

    Ctrl-C finishes the step and saves; training.resume=true goes on from there.

    Examples:

      tiny-audio train

      tiny-audio train training.max_steps=200 output_dir=outputs/short

      tiny-audio train +experiments=stage1 training.learning_rate=1e-4

      tiny-audio train +experiments=small data.train=recordings/manifest.jsonl

      tiny-audio train output_dir=outputs/nano training.resume=true
    """
    from tiny_audio.train.config import compose_config

    config = compose_config(overrides or [])  # a typo is answered before torch is imported

    import shutil

    from tiny_audio.errors import UserError
    from tiny_audio.evaluate.report import format_samples
    from tiny_audio.files import is_disk_full
    from tiny_audio.train.parameters import print_parameter_table
    from tiny_audio.train.run import UNUSABLE_FILE, is_main_process, run
    from tiny_audio.train.skipping import SKIPPED_FILE

    if is_main_process():
        print_parameter_table(config)
        warmup, steps = config.training.warmup_steps, config.training.max_steps
        if warmup > steps:
            typer.echo(
                f"training.warmup_steps={warmup} is more than training.max_steps={steps}: "
                f"the learning rate ends at {steps / warmup:.0%} of its peak",
                err=True,
            )
    try:
        result = run(config)
    except KeyboardInterrupt:
        typer.echo(
            f"\nstopped; go on with: tiny-audio train ... output_dir={config.output_dir} training.resume=true",
            err=True,
        )
        raise
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise UserError(
            f"no space left on the disk of {config.output_dir}: free some, then go on with training.resume=true"
        ) from error
    if result is None:
        return
    metrics = result.metrics
    if result.evaluation is not None:
        low, high = metrics["wer_ci95"]
        width = max(40, shutil.get_terminal_size((100, 24)).columns)
        typer.echo(f"\n{format_samples(result.evaluation, 10, width)}\n")
        typer.echo(
            f"word error rate on {metrics['data']}: {100 * metrics['wer']:.1f}% "
            f"(95% interval {100 * low:.1f} to {100 * high:.1f}%), "
            f"{metrics['reference_words']:,} words in {metrics['num_samples']:,} clips"
        )
    typer.echo(
        f"trained {metrics['steps']:,} steps on {metrics['audio_hours']:.1f} h of audio "
        f"in {metrics['train_seconds'] / 60:.1f} minutes"
    )
    if metrics["skipped_steps"]:
        typer.echo(
            f"{metrics['skipped_steps']:,} of the steps were skipped: {result.folder / SKIPPED_FILE} says why"
        )
    if metrics["unusable_clips"]:
        typer.echo(
            f"{metrics['unusable_clips']:,} clips could not be used: {result.folder / UNUSABLE_FILE} says why"
        )
    problem = None
    if config.training.hub_model_id:
        from tiny_audio.publish.background import push_final

        problem = push_final(config.training.hub_model_id, result.model_folder)
        if problem is not None:
            typer.echo(problem, err=True)
    if result.previous_run is not None:
        typer.echo(f"the earlier run is kept in {result.previous_run}")
    typer.echo(
        f"model: {result.model_folder}   figures: {result.folder / 'metrics.json'}   "
        f"curve: {result.folder / 'loss.png'}"
    )
    if config.ctc.alone_share == 1:
        typer.echo(
            f"the decoder has yet to train:  tiny-audio train ... ctc.alone_share=0"
            f" init_from={result.model_folder} output_dir={result.folder}-2"
        )
    else:
        typer.echo(f"next:  tiny-audio transcribe {result.model_folder} my.wav")
    if problem is not None:
        raise typer.Exit(2)  # a machine that is erased at the end counts on the hub


def cache_features(
    overrides: TrainOverrides = None,
) -> None:
    """Run a frozen encoder over the training clips once and keep what it gives for all epochs and runs to come.

    Give the overrides of the training command, data.features_cache=DIR among them. A stopped command goes on where
    it was; data that is added or changed later is encoded alone. Training then does not run the encoder, nor needs the
    audio where the data states lengths: a manifest with "seconds", parquet with a column of durations.

    With augmentation, data.features_cache_variants=K keeps K sounds of each clip.

    \b
    Examples (an encoder with adapters is not frozen: encoder_lora.r=0):
      tiny-audio cache-features +experiments=small encoder_lora.r=0 data.train=recordings data.features_cache=features
      tiny-audio train +experiments=small encoder_lora.r=0 data.train=recordings data.features_cache=features
    """
    from tiny_audio.errors import UserError
    from tiny_audio.train.config import compose_config

    config = compose_config(overrides or [])
    if config.data.features_cache is None:
        raise UserError("say where the features go: data.features_cache=DIR")

    from tiny_audio.train import features

    features.cache_features(config, note=typer.echo)
