"""Run by its path, in a process of its own: is a published model whole for somebody who has no Tiny Audio?

    python -P outsider.py MODEL REVISION AUDIO

MODEL is a folder, or a hub id at the commit REVISION (empty for a folder). Prints what was heard, as JSON.
"""

import json
import sys

sys.modules["tiny_audio"] = None  # type: ignore[assignment]  # an installed package must not help

from transformers import pipeline  # noqa: E402 (what comes before is the point)

model, revision, audio = sys.argv[1:]
recognise = pipeline(
    "automatic-speech-recognition", model=model, trust_remote_code=True, revision=revision or None
)
print(json.dumps(recognise(audio)["text"]))
