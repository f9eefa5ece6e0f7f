"""`python -m omnitrunk.engine` is the command `omnitrunk`."""

from __future__ import annotations

import sys

from omnitrunk.engine.cli import main

sys.exit(main())
