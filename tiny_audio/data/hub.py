"""Data sets of the Hugging Face hub, ``hub:NAME[/CONFIG]:SPLIT``: their parquet shards, wherever they lie."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from tiny_audio.data.known_sets import TextRules
from tiny_audio.data.parquet import ParquetSource
from tiny_audio.errors import UserError, nearest
from tiny_audio.files import MODELS_VARIABLE

FORM = "hub:ORGANISATION/NAME[/CONFIG]:SPLIT, for example hub:speechbrain/LoquaciousSet/small:train"


def parse_hub_name(name: str) -> tuple[str, str | None, str]:
    """``hub:a/b/c:train`` as ("a/b", "c", "train"). Raises UserError for any other form."""
    place, _, split = name.removeprefix("hub:").rpartition(":")
    parts = place.split("/")
    if not split or len(parts) not in (2, 3) or not all(parts):
        raise UserError(f"{name}: not the name of a hub data set; it should look like {FORM}")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split


def local_copy(repository: str) -> Path | None:
    """The folder that stands for a repository of the hub on this machine, where there is one."""
    models = os.environ.get(MODELS_VARIABLE)
    copy = Path(models) / repository if models else None
    return copy if copy is not None and copy.is_dir() else None


def open_hub_source(
    name: str,
    label: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    text_rules: TextRules | None = None,
) -> ParquetSource:
    """Open a split of a hub data set.

    `label` is what reports call it, if not `name`; columns and rules are those of `ParquetSource`.

    A copy under the folder that ``TINY_AUDIO_MODELS`` names (``$TINY_AUDIO_MODELS/ORGANISATION/NAME``) is
    used instead of the hub. Shards on the hub are read where they lie, a row group at a time. A row that holds only
    the path of its audio may name files of such a copy, and no others.

    Raises:
        UserError: no such set, config or split, no parquet in it, or the hub cannot be reached.
    """
    repository, config, split = parse_hub_name(name)
    copy = local_copy(repository)
    place = str(copy or repository)
    files = _resolve_files(place, config, split, name)
    if not all(file.endswith(".parquet") for file in files):
        raise UserError(
            f"{name}: the data set is not stored as parquet (found {Path(files[0]).name}); convert it first"
        )
    revision = re.search(r"@([0-9a-f]{40})/", files[0])
    return ParquetSource(
        files, label or name, revision[1] if revision else None, columns, text_rules, files_within=copy
    )


def _resolve_files(place: str, config: str | None, split: str, name: str) -> list[str]:
    """The files of a split, as the data set's own README or layout assigns them."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    no_data_files = (datasets.exceptions.DataFilesNotFoundError, datasets.data_files.EmptyDatasetError)
    try:
        builder = datasets.load_dataset_builder(place, config)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f"{name}: the hub has no data set {place}, or it needs a login (hf auth login)"
        ) from error
    except no_data_files as error:  # OSErrors, too
        raise UserError(f"{name}: there are no data files that can be read in {place}") from error
    except RuntimeError as error:  # "Dataset scripts are no longer supported, but found ..."
        raise UserError(
            f"{name}: cannot be opened ({' '.join(str(error).split())}); a data set that is made by a script has to be "
            "converted first: its page on the hub may offer a parquet version, which can be downloaded as a folder"
        ) from error
    except (
        OSError,
        HfHubHTTPError,
    ) as error:  # no network: requests', httpx' and the hub's errors end up here
        raise UserError(
            f"{name}: the hub cannot be reached ({' '.join(str(error).split())[:200]}); "
            f"on a machine without network put a copy of the data set at $TINY_AUDIO_MODELS/{place}"
        ) from error
    except ValueError as error:  # an unknown config: datasets lists the known ones
        bare = Path(place).is_dir() and not (Path(place) / "README.md").is_file()
        hint = f" ({place} has no README.md: that of the hub names the configurations)" if bare else ""
        raise UserError(f"{name}: {' '.join(str(error).split())}{hint}") from error
    splits = builder.config.data_files
    if splits is None or split not in splits:
        known = sorted(str(key) for key in splits or {})
        raise UserError(
            f"{name}: there is no split {split!r}.{nearest(split, known)} Its splits are {', '.join(known)}"
        )
    return sorted(str(file) for file in splits[split])
