"""The command line. Commands parse and print; heavy imports (torch, the SDK) happen inside them."""

from __future__ import annotations

import os
import sys

from activeseg.errors import ActivesegError


def main() -> None:
    """Run the command line: exit 1 and one line on a known error, a traceback on a bug."""
    from activeseg.cli.app import app

    try:
        app()
    except ActivesegError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    except BrokenPipeError:
        # The reader of a pipe (`| head`) left; that is no error. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
