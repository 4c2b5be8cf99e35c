"""Run by its path, in a process of its own: does a staged Space work where there is no Tiny Audio?

    python -P try_space.py SPACE AUDIO

Builds the page of the folder SPACE, and prints what its model heard in AUDIO, as JSON.
"""

import json
import sys

sys.modules["tiny_audio"] = None  # type: ignore[assignment]  # an installed package must not help

space, audio = sys.argv[1:]
sys.path.insert(0, space)

import app  # noqa: E402 (what comes before is the point)

(listener,) = app.listeners
*_, last = listener.listen(listener.read(audio))
print(json.dumps(last.recognition.text))
