"""`python -m prefgeo`: the command line, as launchers of several processes need it (`accelerate launch -m prefgeo`)."""

from __future__ import annotations

import sys

from prefgeo.cli import main

if __name__ == "__main__":
    sys.exit(main())
