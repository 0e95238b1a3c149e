"""Commands that lack something: descriptors, memory, room, a stream, a folder to stand in; and what they print."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINTS, write_picture

FEATCACHE = [sys.executable, "-m", "featcache"]
MODEL = "cache/models/000002-logreg.safetensors"

COMMANDS = {
    "extract": "extract ../pictures --backbone efficientnet_lite0",
    "extract new": "extract ../new --backbone efficientnet_lite0",
    "fit": "fit --csv out.csv --md out.md",
    "compare": "compare --heads logreg,centroid --seeds 1 --plot out.svg",
    "bench": "bench --heads centroid --classes 2 --per-class 1,all --seeds 1",
    "finetune": "finetune --epochs 1 --unfreeze head",
    "confusions": "confusions --head centroid --heads centroid",
    "report": "report --head centroid --heads centroid --out out.html",
    "audit": "audit --write-manifest out.csv",
    "neighbors": "neighbors ../pictures/sky/0.png -k 2",
    "predict": f"predict {MODEL} ../new --csv out.csv",
    "export-onnx": f"export-onnx {MODEL} --out out.onnx",
    "export": "cache export out.npz",
    "import": "cache import ../vectors.npz",
    "info": "cache info",
    "verify": "cache verify --repair",
    "gc": "cache gc --yes --forget ../pictures",
    "compact": "cache compact",
    "runs": "runs",
    "show": "runs show 2",
    "ledger": "ledger",
    "split": "split ../pictures --out out.csv",
    "demo": "demo ../pictures --json",
    "help": "--help",
}

LACKS = {
    "few descriptors": "ulimit -n 32; {}",
    "no descriptors": "ulimit -n 5; {}",
    "60 MB": "ulimit -v 60000; {}",
    "200 MB": "ulimit -v 200000; {}",
    "400 MB": "ulimit -v 400000; {}",
    "800 MB": "ulimit -v 800000; {}",
    "1.2 GB": "ulimit -v 1200000; {}",
    "no file can be long": "ulimit -f 8; {}",
    "no file can be": "ulimit -f 0; {}",
    "no stdout": "{} >&-",
    "a full stdout": "{} >/dev/full",
    "no stderr": "{} 2>&-",
    "a full stderr": "{} 2>/dev/full",
    "no stdin": "{} <&-",
    "nothing open": "{} >&- 2>&- <&-",
    "nobody reads": "{} | true",
    "no home": "env -u HOME {}",
    "no place for temporary files": "TMPDIR=/nowhere {}",
    "a plain locale": "LC_ALL=POSIX LANG=C {}",
    "ascii": "PYTHONIOENCODING=ascii {}",
    "no folder": "mkdir gone; cd gone; rmdir ../gone; {}",
}

MOUNTS = {
    "a read-only cache": "mount --bind cache cache; mount -o remount,ro,bind cache; {}",
    "a full disk": "cd ..; mount -t tmpfs -o size=16m tmpfs home; cp -a kept/. home; cd home; "
    "dd if=/dev/zero of=filler bs=4k 2>/dev/null; {}",
}
"""Lacks that need a mount, in a name space of their own; they are skipped where none can be had."""

SAMPLE = [
    ("no descriptors", "info"),
    ("60 MB", "runs"),
    ("200 MB", "fit"),
    ("no file can be", "split"),
    ("no file can be long", "gc"),
    ("no stdout", "gc"),
    ("a full stdout", "help"),
    ("no stderr", "extract"),
    ("a full stderr", "verify"),
    ("no stdin", "runs"),
    ("nothing open", "split"),
    ("nobody reads", "ledger"),
    ("no home", "info"),
    ("no place for temporary files", "import"),
    ("a plain locale", "show"),
    ("no folder", "info"),
    ("a read-only cache", "verify"),
    ("a full disk", "export"),
]

PROGRESS = re.compile(r".*\d%\|")


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in a folder; only what the package itself needs is in its environment."""
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path(__file__).parents[2])]))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = ["bash", "-o", "pipefail", "-c", script]
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False, timeout=300
    )


def command(words: str) -> str:
    return shlex.join([*FEATCACHE, *shlex.split(words)])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, some new ones, vectors to import, and `home`, where a cache with a model lies."""
    folder = tmp_path_factory.mktemp("resources")
    home = folder / "home"
    home.mkdir()
    for (at, (label, tint)), number in itertools.product(enumerate(TINTS.items()), range(6)):
        os.utime(write_picture(folder / "pictures" / label / f"{number}.png", 10 * at + number, tint), (1e9, 1e9))
    os.utime(write_picture(folder / "new" / "0.png", 99), (1e9, 1e9))
    words = ("extract ../pictures --backbone efficientnet_lite0", "fit", "cache export ../vectors.npz")
    made = shell(" && ".join(map(command, words)), home)
    assert made.returncode == 0, made.stderr
    assert (home / MODEL).exists()
    return folder


@pytest.fixture
def home(prepared: Path) -> Path:
    """A copy of what is prepared, beside the pictures; the cache stays where its runs say the model is."""
    kept = prepared / "kept"
    if not kept.exists():
        shutil.copytree(prepared / "home", kept)
    shutil.rmtree(prepared / "home")
    shutil.copytree(kept, prepared / "home")
    return prepared / "home"


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines on stderr that are no progress, notice or usage."""
    lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip() and not PROGRESS.match(line)]
    notices = ("featcache: on ", "featcache: exporting ", "featcache: no weights for resnet18")
    return [line for line in lines if not line.startswith(notices)]


def expected(lack: str, name: str) -> set[int]:
    """Return the exit codes that a command may have; what it lacks may not be what it needs."""
    if lack in ("no stdout", "a full stdout", "nothing open"):
        return {1}
    if lack == "nobody reads":
        return {141, 0}  # 0 where all was written before the reader was gone
    if lack == "no folder":
        return {0} if name == "help" else {1}
    if lack in MOUNTS or "MB" in lack or "GB" in lack or "descriptors" in lack or lack.startswith("no file"):
        return {0, 1}
    return {0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lack", "name"),
    [
        pytest.param(lack, name, marks=() if (lack, name) in SAMPLE else pytest.mark.soak)
        for lack, name in itertools.product([*LACKS, *MOUNTS], COMMANDS)
    ],
)
def test_a_command_that_lacks_something_is_one_line_and_succeeds_without_the_lack(
    home: Path, lack: str, name: str
) -> None:
    script = (LACKS | MOUNTS)[lack].format(command(COMMANDS[name]))
    if lack in MOUNTS:
        if shell("unshare -m mount --bind cache cache", home).returncode != 0:
            pytest.skip("no name space with mounts of its own can be had here")
        script = f"unshare -m bash -c {shlex.quote(script)}"
    done = shell(script, home)
    lines = said(done)
    assert done.returncode in expected(lack, name), done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in home.rglob(".tmp-*") if "cache" not in path.parts]
    if done.returncode == 1 and lack not in ("no stderr", "a full stderr", "nothing open"):
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("featcache: ") or "OpenBLAS" in lines[0]
        assert done.stdout == ""
        assert not list(home.glob("out.*")) or "out" in lack
    elif done.returncode in (0, 141):
        assert lines == []
    if done.returncode != 0:
        (home / "out.csv").unlink(missing_ok=True)
        again = shell(command(COMMANDS[name]), home)
        assert again.returncode == 0, again.stderr
        assert again.stdout


def test_a_question_that_nobody_can_answer_is_wrong_usage_and_deletes_nothing(home: Path) -> None:
    before = sorted(home.rglob("seg-*"))
    for closed in ("<&-", "</dev/null"):
        done = shell(f"{command('cache gc --forget ../pictures')} {closed}", home)
        assert (done.returncode, done.stdout) == (2, "")
        assert "nobody answered: --yes deletes without asking" in done.stderr
        assert sorted(home.rglob("seg-*")) == before


@pytest.mark.parametrize(
    ("limit", "words", "advice"),
    [
        ("ulimit -v 8000000", "bench --heads centroid --plot out.png", "`ulimit -v unlimited`"),
        ("ulimit -v 40000000", "audit --plot out.svg", "`ulimit -v unlimited`"),
        ("ulimit -n 16", "audit --plot out.pdf", "`ulimit -n 1024`"),
    ],
)
def test_a_figure_that_a_limit_forbids_is_refused_before_the_work_with_the_limit_that_helps(
    home: Path, limit: str, words: str, advice: str
) -> None:
    runs = sorted(home.rglob("runs/*"))
    done = shell(f"{limit}; exec {command(words)}", home)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("featcache: out.")
    assert advice in done.stderr
    assert "memory" not in done.stderr or "-v" in advice
    assert sorted(home.rglob("runs/*")) == runs
    assert not list(home.glob("out.*"))


def test_too_many_open_files_are_called_that_wherever_the_system_says_it(home: Path) -> None:
    lines = said(shell(f"ulimit -n 5; exec {command('cache info')}", home))
    assert "too many open files: raise the limit (`ulimit -n 1024`)" in lines[-1]
    assert "memory" not in lines[-1]
    assert "permissions" not in lines[-1]


def test_a_cleaning_that_could_not_be_printed_can_be_asked_for_again(home: Path) -> None:
    words = command("cache gc --yes --forget ../pictures")
    assert shell(f"{words} >/dev/full", home).returncode == 1
    assert not list(home.rglob("seg-*"))
    again = shell(words, home)
    assert (again.returncode, again.stderr) == (0, "")
    assert "was given up before: nothing is left of it to forget" in again.stdout
    assert shell(command("cache gc --yes --forget ../picture"), home).returncode == 1  # what nobody knows is still that


def test_a_cleaning_makes_room_on_a_disk_without_a_free_byte(home: Path) -> None:
    if shell("unshare -m mount --bind cache cache", home).returncode != 0:
        pytest.skip("no name space with mounts of its own can be had here")
    kept = {path.name for path in home.rglob("seg-*")}
    words = f"{command('cache gc --yes --forget ../pictures')} && find cache -name 'seg-*' && {command('cache info')}"
    done = shell(f"unshare -m bash -c {shlex.quote(MOUNTS['a full disk'].format(words))}", home)
    assert done.returncode == 0, done.stderr
    assert "dataset to give up: " in done.stdout
    assert kept
    assert not any(name in done.stdout for name in kept)
