"""Reading and decoding the JPEG files of a folder: two checkouts of featcache in turn, with equal pixels shown first.

    python benchmarks/bench_decode.py OLDER_CHECKOUT hymenoptera/ --pairs 7

Each run is a process of its own on one thread, which reads up to so many files, keys and decodes each for
efficientnet_lite0, and prints its seconds and a digest of all keys and pixels. Prints the medians and their ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

RUN = """
import hashlib, sys, time
from featcache.backbones import resolve
from featcache.decode import decode_and_look
from featcache.sources import read

steps = resolve("efficientnet_lite0").spec.preprocess
for path in sys.argv[1:6]:
    decode_and_look(read(path)[0], steps, ["original"])
digest, started = hashlib.sha256(), time.perf_counter()
for path in sys.argv[1:]:
    data, key, _ = read(path)
    pixels, _ = decode_and_look(data, steps, ["original"])
    while isinstance(pixels, list):  # of views, and of pages: not every checkout has both
        (pixels,) = pixels
    digest.update(key + pixels.tobytes())
print(time.perf_counter() - started, digest.hexdigest())
"""


def run(checkout: Path, files: list[str]) -> tuple[float, str]:
    """Return the seconds that one checkout takes, and the digest of what it makes."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *files], env=environment, capture_output=True, text=True, check=True
    )
    seconds, digest = done.stdout.split()
    return float(seconds), digest


def main() -> None:
    """Run both checkouts in turn, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("older", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=7)
    asked = parser.parse_args()
    files = [str(path) for path in sorted(asked.folder.rglob("*.jpg"))[: asked.files]]
    here = Path(__file__).resolve().parents[1]
    pairs = [(run(asked.older, files), run(here, files)) for _ in range(asked.pairs)]
    digests = {digest for pair in pairs for _, digest in pair}
    if len(digests) != 1:
        raise SystemExit(f"the keys or pixels differ: {digests}")
    older, newer = ([pair[side][0] for pair in pairs] for side in (0, 1))
    ratios = [new / old for old, new in zip(older, newer, strict=True)]
    print(f"{len(files)} files, {asked.pairs} pairs in turn, keys and pixels equal to the bit")
    print(f"older {statistics.median(older):.2f} s ({min(older):.2f}-{max(older):.2f})")
    print(f"newer {statistics.median(newer):.2f} s ({min(newer):.2f}-{max(newer):.2f})")
    print(f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})")


if __name__ == "__main__":
    main()
