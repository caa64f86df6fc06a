"""The command line: argv -> one call of the API; errors -> text and an exit code.

    app.py        the verbs
    listing.py    checksums list|show|add
    publication.py  the verb publish
    session.py    errors -> text and an exit code, in one place
    options.py    the options that several verbs share
    display.py    progress, tables and JSON; the only place that prints
    rows.py       what the tables and the JSON hold

Nothing heavy is imported before a verb needs it, so that ``--help`` is quick.
"""

from quantkit.cli.app import main

__all__ = ["main"]
