"""Nothing enters; whether this process was forked after featcache was imported leaves."""

import os

seen = False
"""True in a process that was forked; what OpenMP's helpers did in its parent nobody knows."""


def _note() -> None:
    global seen
    seen = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note)
