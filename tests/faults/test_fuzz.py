"""Parsers of bytes from outside, fed with changed files: no crash, no hang, no program, no other file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import PARSERS

COUNT = int(os.environ.get("FEATCACHE_FUZZ", "60"))


@pytest.mark.parametrize("parser", PARSERS)
def test_changed_files_are_taken_or_end_in_an_error_of_ours(parser: str, tmp_path: Path) -> None:
    if "parquet" in parser or parser == "arrow":
        pytest.importorskip("pyarrow")
    script = Path(__file__).parent / "fuzz.py"
    done = subprocess.run(
        [sys.executable, str(script), parser, str(COUNT), "0"],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout)
    assert counts["inputs"] >= COUNT // 2
