"""`python -m featcache` enters; the command line leaves."""

from featcache.cli import main

main()
