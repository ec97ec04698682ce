"""`python -m raysim` runs the command `raysim`."""

import sys

from raysim.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
