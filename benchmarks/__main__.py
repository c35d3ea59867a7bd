"""Runs all benchmarks: ``python benchmarks --out benchmarks``."""

import sys

from harness import main

sys.exit(main())
