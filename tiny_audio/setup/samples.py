"""Speech to try things with: clips of the embedded corpus as files, with a manifest."""

from __future__ import annotations

import io
import json
from pathlib import Path

from tiny_audio.files import write_folder

MANIFEST = "manifest.jsonl"


def write_corpus_samples(folder: Path, number: int) -> list[Path]:
    """Write clips of unseen voices (corpus:test) as WAV files with a manifest, which makes the folder a SOURCE.

    The clips are spread over the voices. Returns their paths.
    """
    import soundfile

    from tiny_audio.data import corpus

    entries = corpus.read_index("test")
    chosen = [entries[index * len(entries) // number] for index in range(number)]
    contents: dict[str, str | bytes] = {}
    rows = []
    for entry in chosen:
        waveform, rate = corpus.read_audio(entry)
        encoded = io.BytesIO()
        soundfile.write(encoded, waveform, rate, format="WAV", subtype="PCM_16")
        contents[f"{entry.id}.wav"] = encoded.getvalue()
        row = {
            "audio": f"{entry.id}.wav",
            "text": entry.text,
            "speaker": entry.speaker,
            "seconds": entry.seconds,
        }
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    contents[MANIFEST] = "".join(rows)
    write_folder(folder, contents)
    return [folder / f"{entry.id}.wav" for entry in chosen]
