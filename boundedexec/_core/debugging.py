"""Whether submissions remember where they were made, for the record of a lost failure."""

from __future__ import annotations

import sys


class Debugging:
    """Where submitters look. `PYTHONDEVMODE` (`python -X dev`) turns it on from the start."""

    on = sys.flags.dev_mode


debugging = Debugging()
