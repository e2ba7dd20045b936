"""`python -m jaxfed.cli` is `jaxfed`."""

from jaxfed.cli import main

main.main()
