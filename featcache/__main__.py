"""`python -m featcache` enters; the command line leaves."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def start() -> NoReturn:
    """Run the command line; Ctrl-C while it is still being loaded ends it as quietly as later on.

    While Python itself is being loaded, nobody can catch it.
    """
    try:
        from featcache.cli import main

        main()
    except KeyboardInterrupt:
        sys.stderr.write("featcache: interrupted before it began\n")
        sys.exit(130)
    except SystemExit as end:
        if end.code:
            from contextlib import suppress

            with suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(int(end.code))  # Python would wait for threads that read, and they for a server that is silent
        raise


if __name__ == "__main__":
    start()
