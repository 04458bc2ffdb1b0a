"""`python -m accelsim` is the command `accelsim`."""

from accelsim.cli import main

main()
