"""`python -m diffmatch`: the command line."""

import sys

from diffmatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
