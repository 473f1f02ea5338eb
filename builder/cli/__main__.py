"""`python -m builder.cli` is `pybuild`."""

from builder.cli import main

main()
