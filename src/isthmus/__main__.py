"""`python -m isthmus` is the command line."""

from isthmus.cli.main import main

main()
