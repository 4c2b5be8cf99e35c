"""Folders of recordings: a ``.txt`` beside each audio file, or the layout of LibriSpeech."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tiny_audio.data.source import Source, show_progress
from tiny_audio.data.utterance import AudioRef, Problem, Utterance
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_audio import AudioError, audio_seconds, load_audio

LIBSNDFILE_SUFFIXES = {
    ".wav",
    ".flac",
    ".ogg",
    ".oga",
    ".opus",
    ".mp3",
    ".aif",
    ".aiff",
    ".aifc",
    ".au",
    ".caf",
    ".w64",
}
FFMPEG_SUFFIXES = {".m4a", ".mp4", ".webm", ".mka", ".mkv", ".aac", ".wma", ".amr", ".3gp"}
AUDIO_SUFFIXES = frozenset(LIBSNDFILE_SUFFIXES | FFMPEG_SUFFIXES)
TRANSCRIPT_LIST_SUFFIX = ".trans.txt"


class FileSource(Source):
    """Rows that are one audio file each."""

    def read(self, utterance: Utterance, max_seconds: float | None = None) -> np.ndarray:
        return load_audio(utterance.audio.location, max_seconds=max_seconds)


class FolderSource(FileSource):
    """Every audio file of a folder tree, in the order of its path, with the transcript that lies beside it.

    Where any ``*.trans.txt`` lies in the tree it is read in the layout of LibriSpeech
    (https://www.openslr.org/12): lines ``ID TRANSCRIPT`` beside ``ID.flac``, the speaker before the first
    hyphen of the id. Otherwise ``name.wav`` has its transcript in ``name.txt``. Names that begin with a dot
    are left alone; links to folders elsewhere are followed.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.problems = []
        self._utterances: list[Utterance] = []
        files = sorted(walk_files(folder))
        lists = [path for path in files if path.name.endswith(TRANSCRIPT_LIST_SUFFIX)]
        audio = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
        if not audio and not lists:
            raise UserError(
                f"{name}: no audio in this folder; it should hold audio files "
                f"({', '.join(sorted(AUDIO_SUFFIXES))}) with a .txt of the same name beside each, "
                "a manifest.jsonl, or .parquet files"
            )
        if lists:
            self._scan_transcript_lists(folder, audio, lists)
        else:
            self._scan_pairs(folder, audio, [path for path in files if path.suffix.lower() == ".txt"])
        self.require_rows()

    def utterances(self) -> Sequence[Utterance]:
        return self._utterances

    def _scan_pairs(self, folder: Path, audio: list[Path], texts: list[Path]) -> None:
        text_of = {path.with_suffix(""): path for path in texts}
        num_of_stem = Counter(path.with_suffix("") for path in audio)
        for path in show_progress(audio, "reading audio headers", len(audio)):
            relative = path.relative_to(folder)
            stem = path.with_suffix("")
            if stem not in text_of:
                self.problems.append(Problem(str(relative), f"has no transcript {stem.name}.txt beside it"))
                continue
            text = self._read_text(text_of[stem], folder)
            if text is not None:
                row_id = (relative.with_suffix("") if num_of_stem[stem] == 1 else relative).as_posix()
                self._add(path, relative, row_id, " ".join(text.split()), None)
        for stem, path in text_of.items():
            if stem not in num_of_stem:
                self.problems.append(
                    Problem(
                        str(path.relative_to(folder)),
                        "is a transcript without audio beside it",
                    )
                )

    def _scan_transcript_lists(self, folder: Path, audio: list[Path], lists: list[Path]) -> None:
        audio_of = {path.with_suffix(""): path for path in audio}
        listed: set[Path] = set()
        for path in show_progress(lists, "reading audio headers", len(lists)):
            for number, line in enumerate((self._read_text(path, folder) or "").split("\n"), start=1):
                if not line.strip():
                    continue
                row_id, _, text = line.strip().partition(" ")
                stem = path.parent / row_id
                listed.add(stem)
                speaker = row_id.split("-")[0] if "-" in row_id else None
                if stem not in audio_of:
                    where = f"{path.relative_to(folder)} line {number}"
                    unheard = Utterance(row_id, text.strip(), None, AudioRef(str(stem)), speaker)
                    reason = f"names {row_id}, which has no audio file beside it"
                    self.problems.append(Problem(where, reason, unheard))
                    continue
                self._add(
                    audio_of[stem],
                    audio_of[stem].relative_to(folder),
                    row_id,
                    text.strip(),
                    speaker,
                )
        for stem, path in audio_of.items():
            if stem not in listed:
                self.problems.append(
                    Problem(
                        str(path.relative_to(folder)),
                        f"is in no *{TRANSCRIPT_LIST_SUFFIX} beside it",
                    )
                )

    def _add(self, path: Path, relative: Path, row_id: str, text: str, speaker: str | None) -> None:
        try:
            seconds = audio_seconds(path)
        except AudioError as error:
            unheard = Utterance(row_id, text, None, AudioRef(str(path)), speaker)
            self.problems.append(Problem(str(relative), str(error).removeprefix(f"{path}: "), unheard))
            return
        self._utterances.append(Utterance(row_id, text, seconds, AudioRef(str(path)), speaker))

    def _read_text(self, path: Path, folder: Path) -> str | None:
        try:
            return path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = (
                "is not UTF-8 text"
                if isinstance(error, UnicodeDecodeError)
                else f"cannot be read ({error.strerror})"
            )
            self.problems.append(Problem(str(path.relative_to(folder)), reason))
            return None


def walk_files(folder: Path) -> Iterator[Path]:
    """All files below a folder but those with a dot in front, each folder once: what links lead to comes last.

    A link to a folder that is there anyway, or that holds `folder` itself, adds nothing.
    """
    top = folder.resolve()
    seen: set[Path] = set()
    waiting = [folder]
    while waiting:
        for parent, folders, names in os.walk(waiting.pop(0)):
            real = Path(parent).resolve()
            if real in seen or (real != top and top.is_relative_to(real)):
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            waiting += [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
            yield from (Path(parent, name) for name in names if not name.startswith("."))
