"""Every parser of bytes from outside, fed with changed files: `python fuzz.py PARSER[,PARSER] COUNT SEED`.

It prints how many inputs there were and how many were taken. It ends with an error where a parser raises anything but
the package's own errors, takes too long, starts a program, asks the network, or opens a file outside its folder.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import sys
import tempfile
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from fuzz_parsers import parser
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

import featcache
from featcache.errors import FeatcacheError

SECONDS = 20
"""How long one input may take; a picture of the largest size that is decoded takes some seconds."""

MEMORY = 6 * 2**30
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


@st.composite
def changed(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """Draw one of the files with a few changes: bits, numbers, pieces left out, doubled or brought from elsewhere."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["bit", "byte", "number", "text", "cut", "drop", "double", "splice"]))
        if kind == "bit" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "number":
            size, order = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(["little", "big"]))
            data[at : at + size] = (draw(st.sampled_from(NUMBERS)) % 256**size).to_bytes(size, order)
        elif kind == "text":
            data[at:at] = draw(
                st.sampled_from(
                    [b"../../x", b"\0", b'"', b"[[[[", b"1e999", b"\xff\xd8\xff\xda", b"\r\n", b"/dev/zero"]
                )
            )
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        else:
            other = draw(st.sampled_from(files))
            start = draw(st.integers(0, max(0, len(other) - 1)))
            data[at : at + 32] = other[start : start + 32]
    return bytes(data)


class Watch:
    """Looks at what the process does; `wrong` is what it must not do."""

    def __init__(self, folder: Path) -> None:
        self.wrong: list[str] = []
        self.is_on = False
        ours = (sys.prefix, sys.base_prefix, str(Path(featcache.__file__).parent), str(Path(__file__).parent))
        self._allowed = (
            str(folder),
            *map(os.path.realpath, ours),
            *ours,
            "/proc/self/",
            "/sys/",
            "/dev/null",
            "/etc/ld",
        )
        self._above = {str(above) for above in folder.parents}  # whose names are made durable
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"):
            self.wrong.append(f"{event} {arguments!r:.200}")
        elif event in ("open", "os.remove", "os.rename", "os.mkdir") and isinstance(arguments[0], str | bytes):
            name = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100
            if not name.startswith(self._allowed) and name not in self._above:
                self.wrong.append(f"{event} {name!r:.200}")


def main(name: str, count: int, number: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    files, called, use = parser(name, folder)
    for at, data in enumerate(files):  # what is whole is taken, or the run would show nothing
        (folder / called).write_bytes(data)
        with nullcontext() if at == 0 else suppress(FeatcacheError):  # others may be of a kind that is refused
            use(folder / called)
    watch = Watch(folder)
    (folder / "changed-files-begin").touch()  # where a trace of the system begins to count
    counts = {"inputs": 0, "taken": 0}
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, lambda *_: os.abort())

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(changed(files))
    def fuzz(data: bytes) -> None:
        counts["inputs"] += 1
        (folder / called).unlink(missing_ok=True)
        (folder / called).write_bytes(data)
        signal.alarm(SECONDS)
        watch.is_on = True
        try:
            use(folder / called)
            counts["taken"] += 1
        except (FeatcacheError, MemoryError):
            pass
        except BaseException:
            (folder / "failed").write_bytes(data)
            sys.stderr.write(f"{name}: {folder / 'failed'}\n")
            raise
        finally:
            watch.is_on = False
            signal.alarm(0)
        assert watch.wrong == [], watch.wrong

    fuzz()
    sys.stdout.write(json.dumps({"parser": name, **counts}) + "\n")


if __name__ == "__main__":
    import logging

    logging.disable()
    sqlite3.enable_callback_tracebacks(False)
    for one in sys.argv[1].split(","):
        main(one, int(sys.argv[2]), int(sys.argv[3]))
