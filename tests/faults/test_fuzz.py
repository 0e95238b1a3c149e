"""Parsers of bytes from outside, fed with changed files: no crash, no hang, no program, no other file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from fuzz_parsers import PARSERS

COUNT = int(os.environ.get("FEATCACHE_FUZZ", "40"))
CALL = re.compile(
    r"^\d+ +(?:<\.\.\. )?(execve|openat|connect)"
    r'(?:\((?:AT_FDCWD, |\d+, )?"((?:[^"\\]|\\.)*)"(?:\.\.\.)?, ?([A-Z_|]*))?'
)
READABLE = (
    *{sys.prefix, sys.base_prefix, os.path.realpath(sys.prefix), str(Path(__file__).resolve().parents[2])},
    *("/usr/lib", "/usr/share", "/lib", "/etc/ld", "/etc/local", "/proc/", "/sys/", "/dev/null", "/dev/urandom"),
)
"""Where a Python program opens files of its own accord, to read them."""


NEEDED = {
    "dicom": "pydicom",
    "parquet": "pyarrow",
    "export.parquet": "pyarrow",
    "arrow": "pyarrow",
    "onnx": "onnx",
    "index": "faiss",
}


def fuzz(parsers: Sequence[str], folder: Path, seed: int, before: tuple[str, ...] = ()) -> list[dict[str, int]]:
    for parser in parsers:
        if parser in NEEDED:
            pytest.importorskip(NEEDED[parser])
    script = Path(__file__).parent / "fuzz.py"
    done = subprocess.run(
        [*before, sys.executable, str(script), ",".join(parsers), str(COUNT), str(seed)],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counts: list[dict[str, int]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(counts) == len(parsers)
    assert all(count["inputs"] >= COUNT // 2 for count in counts)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("parsers", [PARSERS[at::3] for at in range(3)], ids=" ".join)
def test_changed_files_are_taken_or_end_in_an_error_of_ours(parsers: Sequence[str], tmp_path: Path) -> None:
    fuzz(parsers, tmp_path, 0)


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("parser", PARSERS)
def test_the_system_sees_no_program_and_no_other_file(parser: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (counts,) = fuzz(
        [parser],
        tmp_path,
        1,
        ("strace", "-f", "--seccomp-bpf", "-s", "400", "-o", str(trace), "-e", "trace=execve,openat,connect"),
    )
    begun, wrong = False, []
    for line in trace.read_text(errors="replace").splitlines():
        found = CALL.match(line)
        if not found or not begun:
            begun = begun or "/changed-files-begin" in line
            continue
        call, name, flags = found[1], found[2] or "", found[3] or ""
        # what is below a descriptor of a folder of ours, and folders above it, whose names are made durable
        is_ours = name.startswith(str(tmp_path)) or not name.startswith("/") or name in map(str, tmp_path.parents)
        is_read = call == "openat" and re.search("O_WRONLY|O_RDWR|O_CREAT", flags) is None
        if not is_ours and not (is_read and name.startswith(READABLE)):
            wrong.append(line)
    assert begun
    assert wrong == []
    with open(os.environ.get("FEATCACHE_FUZZ_COUNTS", os.devnull), "a") as counted:
        counted.write(json.dumps(counts) + "\n")
