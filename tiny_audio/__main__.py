"""`python -m tiny_audio`, the same as `tiny-audio`."""

import sys

from tiny_audio.cli import main

if __name__ == "__main__":
    sys.exit(main())
