"""`python -m vitsal.cli`, as launchers of several processes start it."""

from vitsal.cli import main

main()
