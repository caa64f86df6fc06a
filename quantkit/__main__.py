"""``python -m quantkit``: the same as the command."""

from quantkit.cli import main

main()
