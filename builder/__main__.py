"""`python -m builder` is `pybuild`."""

from builder.cli import main

main()
