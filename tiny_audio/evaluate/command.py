"""`tiny-audio eval`: the word error rate of a recogniser on any source of speech."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from tiny_audio.data.known_sets import expand_sets
from tiny_audio.data.source import Source
from tiny_audio.data.sources import open_source
from tiny_audio.devices import DeviceOption, Dtype, DtypeOption
from tiny_audio.errors import UserError
from tiny_audio.evaluate.normalize import NORMALIZERS, get_normalizer
from tiny_audio.evaluate.page import audio_reader, write_page
from tiny_audio.evaluate.providers import (
    DEFAULT_PROVIDER,
    PROVIDERS,
    Provider,
    check_provider,
    find_model,
    key_variable,
    load_provider,
)
from tiny_audio.evaluate.report import format_samples, format_summary, write_results
from tiny_audio.evaluate.results import METRICS_FILE, PAGE_FILE, RESULTS_TEXT_FILE, EvalResult
from tiny_audio.evaluate.runner import evaluate
from tiny_audio.evaluate.sets import format_macro_table, write_summary
from tiny_audio.evaluate.store import TranscriptStore, cached_store
from tiny_audio.files import safe_name

CORPUS_TEST = "corpus:test"
# Every configuration of LoquaciousSet has the same test split.
LOQUACIOUS_TEST = "hub:speechbrain/LoquaciousSet/large:test"
NUM_SHOWN_SAMPLES = 10
UNFINISHED_FILE = ".transcripts.jsonl"


def evaluate_command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Folder or hub id of the model, such as outputs/nano/model; for a service, what it calls the model.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="What to test on: corpus:SPLIT, a folder, a manifest.jsonl, a .parquet file, hub:NAME[/CONFIG]:SPLIT,"
            " or a known set such as librispeech-clean or open-asr (all of the Open ASR Leaderboard). May be given"
            " several times. Left out: corpus:test for a model trained on the embedded corpus, else the test"
            " split of LoquaciousSet.",
            show_default=False,
        ),
    ] = None,
    max_samples: Annotated[
        int | None,
        typer.Option(min=1, help="Score this many utterances, the same ones every time.", show_default=False),
    ] = None,
    provider: Annotated[
        str,
        typer.Option(
            help="Who recognises, and what MODEL is then. "
            + " ".join(f"{name}: {entry.help}." for name, entry in PROVIDERS.items())
        ),
    ] = DEFAULT_PROVIDER,
    normalizer: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(NORMALIZERS)}. Left out: digits (counted one by one) for strings of digits, else"
            " english (Whisper's).",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips transcribed at a time.")] = 16,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.auto,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where results are written. Left out: outputs/eval_MODEL_DATA.", show_default=False
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Recognise everything anew, whatever was kept of earlier runs.")
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Let a model of another project run its own code here."),
    ] = False,
    api_key: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure the word error rate of a model, or of any other recogniser.

    Writes report.html (to look at and listen to), results.txt (the worst utterances first, with every error
    marked), results.jsonl and metrics.json. WER is a fraction of all words of the set: 0.05 is one word in twenty.
    An evaluation that was stopped goes on where it stood when the same command is given again.

    \b
    Examples:
      tiny-audio eval outputs/nano/model
      tiny-audio eval outputs/nano/model --data recordings/manifest.jsonl
      tiny-audio eval mazesmazes/tiny-audio --max-samples 100
      tiny-audio eval openai/whisper-base --provider transformers --data librispeech-clean
      tiny-audio eval --provider "cmd: my-recogniser {file}" --data recordings
    """
    # What can be wrong with the request is found before minutes are spent on it, the cheapest first.
    if api_key is not None:
        refuse_key(provider)
    check_provider(provider, model)
    if normalizer is not None:
        get_normalizer(normalizer)
    if not data:
        default, reason = default_data(model if provider == DEFAULT_PROVIDER else None)
        typer.echo(f"Testing on {default}: {reason}.", err=True)
        data = [default]
    name = model or provider
    sets = [each for item in data for each in expand_sets(item)]
    folders = output_folders(sets, name, output_dir)
    for folder in folders:
        check_output_dir(folder)
    if len(sets) > 1:
        summary = output_dir or Path("outputs") / f"eval_{_safe(_model_name(name))}_{len(sets)}-sets"
        check_output_dir(summary)
    sources = [open_source(each) for each in sets]
    recogniser = load_provider(provider, model, device, dtype=dtype, trust_remote_code=trust_remote_code)
    results = []
    for source, folder in zip(sources, folders, strict=True):
        result = evaluate_into(
            folder,
            recogniser,
            source,
            model_name=name,
            normalizer=normalizer,
            batch_size=batch_size,
            max_samples=max_samples,
            fresh=fresh,
        )
        results.append(result)
        width = max(40, shutil.get_terminal_size((100, 24)).columns)
        typer.echo(format_summary(result))
        typer.echo(f"\n{format_samples(result, NUM_SHOWN_SAMPLES, width)}\n")
        typer.echo(
            f"To look at and listen to: {folder / PAGE_FILE}   as text: {folder / RESULTS_TEXT_FILE}\n"
        )
    if len(results) > 1:
        by_name = {_safe(_data_name(each)): result for each, result in zip(sets, results, strict=True)}
        readers = [audio_reader(result, source) for result, source in zip(results, sources, strict=True)]
        write_summary(by_name, dict(zip(by_name, readers, strict=True)), summary)
        typer.echo(f"{format_macro_table(results)}\n\nAll sets on one page: {summary / PAGE_FILE}")
    # Only now: had a later set been stopped, the earlier ones would not have been recognised again.
    for folder in folders:
        (folder / UNFINISHED_FILE).unlink(missing_ok=True)


def evaluate_into(
    folder: Path, recogniser: Provider, source: Source, *, fresh: bool, **options: Any
) -> EvalResult:
    """Evaluate one source and write its files, going on from what an earlier, stopped evaluation kept.

    Transcripts of services that want money are kept for good, in the user's cache folder; those of models that
    run here until the command has written the results of all its sets.
    """
    if recogniser.costs_money:
        store = cached_store(recogniser.identity)
    else:
        store = TranscriptStore(folder / UNFINISHED_FILE, recogniser.identity)
    if fresh:
        store.remove()
    elif len(store) and not recogniser.costs_money:
        typer.echo(
            f"Going on where it was stopped: {len(store):,} transcripts are in {store.path}.", err=True
        )
    replaced = previous_evaluation(folder)
    try:
        result = evaluate(recogniser, source, store=store, show_progress=True, **options)
    except KeyboardInterrupt:
        typer.echo(
            f"\nstopped; {len(store):,} transcripts are kept in {store.path}: the same command goes on from there",
            err=True,
        )
        raise
    write_results(result, folder)
    write_page([result], folder / PAGE_FILE, audio_reader(result, source))
    if replaced is not None and replaced != (result.model, result.data):
        typer.echo(f"(replaces the results of {replaced[0]} on {replaced[1]})", err=True)
    return result


def output_folders(sets: Sequence[str], model: str, output_dir: Path | None) -> list[Path]:
    """Where the results of each set go: a folder of the user's choice has one inside for each of several sets.

    Raises UserError where one set would write over the results of another.
    """
    if output_dir is None:
        folders = [Path("outputs") / default_folder_name(model, name) for name in sets]
    elif len(sets) == 1:
        folders = [output_dir]
    else:
        folders = [output_dir / _safe(_data_name(name)) for name in sets]
    for index, folder in enumerate(folders):
        first = folders.index(folder)
        if first < index and sets[first] == sets[index]:
            raise UserError(f"{sets[index]} is given twice.")
        if first < index:
            raise UserError(
                f"The results of {sets[first]} and of {sets[index]} would both be written to {folder}:"
                " evaluate them one after the other, each with an --output-dir of its own."
            )
    return folders


def refuse_key(provider: str) -> NoReturn:
    """Keys on a command line end up in the shell's history and in every list of processes."""
    if provider not in PROVIDERS and not provider.startswith("cmd:"):
        check_provider(provider, None)  # says which one may be meant
    variable = key_variable(provider)
    advice = f"set {variable} instead" if variable else f"the provider {provider} needs none"
    raise UserError(f"Keys are not taken from the command line, where others can read them: {advice}.")


def default_data(model: str | None) -> tuple[str, str]:
    """The SOURCE to test on when the user names none, and why that one.

    A model trained on the embedded corpus is tested on its test split; what it was trained on stands in the
    config.yaml of its run, which lies in the folder that holds `model/` (or `checkpoints/step-N/`).
    """
    config_path = None if model is None else find_run_config(Path(find_model(model)))
    if config_path is None:
        return (
            LOQUACIOUS_TEST,
            "no config.yaml of its training lies beside the model; choose other data with --data",
        )
    sources = trained_on(config_path)
    if any(source.startswith("corpus:") for source in sources):
        return CORPUS_TEST, f"{config_path} says that the model was trained on the embedded corpus"
    named = ", ".join(sources) or "nothing"
    return LOQUACIOUS_TEST, f"{config_path} says that the model was trained on {named}"


def find_run_config(model_dir: Path) -> Path | None:
    """The config.yaml of the run that made a model, if it is there."""
    nearby = (model_dir, model_dir.resolve().parent, model_dir.resolve().parent.parent)
    return next((folder / "config.yaml" for folder in nearby if (folder / "config.yaml").is_file()), None)


def trained_on(config_path: Path) -> list[str]:
    """The SOURCEs under data.train of a run's config.yaml.

    Raises UserError for a file that cannot be read as one.
    """
    from omegaconf import OmegaConf

    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(config_path))
        sources = config["data"]["train"]
    except Exception as error:  # a file of any content can be called config.yaml
        raise UserError(
            f"{config_path} does not say what the model was trained on (data.train): {type(error).__name__}."
            " Name the data to test on with --data."
        ) from error
    return [str(source) for source in (sources if isinstance(sources, list) else [sources])]


def default_folder_name(model: str, data: str) -> str:
    """`eval_<model>_<data>`, safe as a folder name on every system.

    outputs/nano/model on corpus:test gives eval_nano_corpus-test.
    """
    return f"eval_{_safe(_model_name(model))}_{_safe(_data_name(data))}"


def _model_name(model: str) -> str:
    """The run of a local model (with the step of a checkpoint), or the hub id."""
    if not Path(model).expanduser().exists():
        return model
    path = Path(model).expanduser().resolve()
    if path.name == "model":
        path = path.parent
    return f"{path.parent.parent.name}-{path.name}" if path.parent.name == "checkpoints" else path.name


def _data_name(data: str) -> str:
    if data.startswith("hub:"):
        return data.removeprefix("hub:").split("/", 1)[-1]
    if data.startswith("corpus:"):
        return data
    path = Path(data)
    return path.resolve().parent.name if path.name == "manifest.jsonl" else path.resolve().stem


def _safe(name: str) -> str:
    return safe_name(name)[:60]


def check_output_dir(folder: Path) -> None:
    """Raise UserError if results could not be written there. Creates nothing."""
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    if not existing.is_dir():
        raise UserError(
            f"Cannot write results to {folder}: {existing} is a file. Choose another --output-dir."
        )
    if not os.access(existing, os.W_OK):
        raise UserError(
            f"Cannot write results to {folder}: no permission to write in {existing}."
            " Choose another --output-dir."
        )


def previous_evaluation(folder: Path) -> tuple[str, str] | None:
    """Model and data of the evaluation whose results lie in a folder, None where there are none."""
    try:
        metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
        return str(metrics["model"]), str(metrics["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
