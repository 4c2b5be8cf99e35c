"""`python -m tiny_audio.setup` is `tiny-audio verify-setup`, and needs no package to start."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036, who runs this may have any Python
    version = ".".join(map(str, sys.version_info[:2]))
    raise SystemExit(
        f"Python {version} is too old for Tiny Audio; this finds a newer one: python tasks.py setup"
    )

from tiny_audio.setup.report import main

raise SystemExit(main())
