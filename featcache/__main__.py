"""`python -m featcache` enters; the command line leaves."""

import sys
from typing import NoReturn


def start() -> NoReturn:
    """Run the command line; Ctrl-C while it is still being loaded ends it as quietly as later on."""
    try:
        from featcache.cli import main

        main()
    except KeyboardInterrupt:
        sys.stderr.write("featcache: interrupted before it began\n")
        sys.exit(130)


if __name__ == "__main__":
    start()
