"""`python -m lowrank_export`."""

from .cli import main

main()
