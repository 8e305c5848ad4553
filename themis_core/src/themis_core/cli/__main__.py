"""`python -m themis_core.cli` is the command `themis`."""

from themis_core.cli.main import main

main()
