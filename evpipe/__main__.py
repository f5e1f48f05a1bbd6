"""`python -m evpipe`: the command line."""

from evpipe.cli.main import main

main()
