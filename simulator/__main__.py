"""`python -m peakline` is the command line."""

import sys

from peakline.cli import main

if __name__ == "__main__":
    sys.exit(main())
