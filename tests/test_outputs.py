"""What leaves: printable text on terminals, CSV that nothing tears or runs, and files that are whole or not there."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, write_picture
from hypothesis import example, given
from hypothesis import strategies as st
from store_rows import SPEC, make_rows

import featcache
from featcache.api.outputs import write
from featcache.cli.streams import streams
from featcache.discover import discover
from featcache.errors import OutputError
from featcache.records import Features
from featcache.records.experiments import Prediction, PredictSummary
from featcache.render import predict_csv
from featcache.sheets import csv_text, meant
from featcache.store import Cache
from featcache.store.exchange import Exchange, packed

Run = Callable[..., Result]

NASTY = "\x1b[31mred\x1b]0;title\x07 \r\n\u202eltr\u200b\x9b "
UNDECODABLE = os.fsdecode(b"\xff")
"""Left out where commands run in this process: reports of tests that hold it cannot be sent by pytest-xdist."""
LABELS = ["=cmd()", "+1+1", "-x", "@here", NASTY.strip()]


# --- text ---


def assert_printable(text: str) -> None:
    assert [c for c in text if not (c.isprintable() or c == "\n")] == []


@pytest.fixture
def nasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cache with vectors of pictures and classes with names that no terminal should be shown."""
    monkeypatch.chdir(tmp_path)
    return imported(tmp_path, NASTY)


def imported(folder: Path, name: str) -> Path:
    """Import a dataset with names of this kind, and return its file."""
    keys, X = make_rows(0, 40)
    y = np.array([LABELS[at % 5] for at in range(40)])
    paths = tuple(f"/gone/{label}/{at}{name}.png" for at, label in enumerate(y.tolist()))
    splits = np.array(["train" if at < 30 else "test" for at in range(40)])
    file = folder / f"{name}.npz"
    file.write_bytes(packed(file, Exchange(Features(X, y, paths, splits, tuple(keys), SPEC.fingerprint), SPEC, NASTY)))
    featcache.cache_import(file, options=featcache.Options(cache=folder / "cache"))
    return file


@pytest.mark.usefixtures("nasty")
@pytest.mark.parametrize(
    "words",
    [
        ["fit"],
        ["compare", "--heads", "centroid,knn", "--seeds", "1", "--plot", "out.svg"],
        ["confusions", "--head", "centroid", "--heads", "centroid", "--plot", "out.svg"],
        ["audit", "--plot", "out.svg"],
        ["runs"],
        ["runs", "show", "1"],
        ["ledger"],
        ["cache", "info"],
        ["cache", "verify"],
        ["cache", "export", f"out{NASTY}.npz"],
        ["cache", "import", f"{NASTY}.npz"],
        ["cache", "gc", "--dry-run", "--forget", f"{NASTY}.npz"],
        ["cache", "import", f"no{NASTY}.npz"],
        ["extract", f"no{NASTY}"],
        ["fit", f"--no{NASTY}"],
        ["report", "--head", "centroid", "--heads", "centroid", "--out", "out.html"],
    ],
    ids=lambda words: ascii(" ".join(words[:2])),
)
def test_nothing_that_acts_on_a_terminal_is_printed(run: Run, words: list[str], tmp_path: Path) -> None:
    result = run(*words)
    drawn = "\n".join(result.err.replace("\r", "\n").splitlines())
    assert_printable(result.out)
    assert_printable(drawn)
    assert result.out or result.err.count("\n") in (1, 4)  # wrong usage has a blank line
    if not words[-1].startswith(("no", "--no")):
        assert result.code == 0, result.err
    told = run(*words, "--json")
    assert not told.out or json.loads(told.out)
    assert told.out.isascii()
    assert_printable(told.out)
    for name in ("out.html", "out.svg"):
        text = (tmp_path / name).read_text() if (tmp_path / name).exists() else ""
        assert not {"\x1b", "\u202e", "\u200b", "\x9b", "\x07"} & set(text)


@pytest.mark.slow
def test_a_plain_locale_shows_the_same(tmp_path: Path) -> None:
    nasty = imported(tmp_path, NASTY + UNDECODABLE)
    for settings in ({"LC_ALL": "POSIX"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C.UTF-8"}):
        environment = os.environ | {"LANG": "C"} | settings
        words = [sys.executable, "-m", "featcache", "cache", "info"]
        done = subprocess.run(words, env=environment, capture_output=True, cwd=nasty.parent, check=True)
        assert_printable(done.stdout.decode())
        assert b"\\x1b[31mred\\x1b]0;title\\x07 \\r\\n\\u202eltr\\u200b\\x9b \\udcff.npz" in done.stdout
        assert done.stderr == b""


def test_what_others_print_is_spelled_out_too_and_a_bar_may_go_back_to_its_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with streams():
        sys.stdout.write(f"{NASTY}{UNDECODABLE}\n")
        sys.stderr.write(f"\r{NASTY}{UNDECODABLE}\n")
        sys.stderr.write("\r   \r")
        with pytest.raises(AttributeError):
            sys.stdout.buffer  # noqa: B018
    out, err = capsys.readouterr()
    shown = "\\x1b[31mred\\x1b]0;title\\x07 \\r\n\\u202eltr\\u200b\\x9b \\udcff\n"
    assert out == shown
    assert err == f"\r{shown}\r   \r"


# --- CSV ---


@given(rows=st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.floats(allow_nan=False))))
@example(rows=[("=1+1", -1.0), ("'=1+1", 0.5), ("-5", 1.0), ("+3.5e-7", 1.0), ("\r\nx", 1.0), ("\t", 1.0), ("-", 1.0)])
def test_every_cell_comes_back_and_none_is_run(rows: list[tuple[str, float]]) -> None:
    text = csv_text(["=name", "value"], rows)
    header, *found = csv.reader(io.StringIO(text, newline=""))
    assert header == ["'=name", "value"]
    assert [(meant(name), float(value)) for name, value in found] == rows
    for name, _ in found:
        if name.startswith(("=", "+", "-", "@", "\t", "\r")):
            float(name)


def test_a_manifest_of_names_like_formulas_is_read_back(run: Run, tmp_path: Path) -> None:
    labels = ["=cmd()", "-x", "-7", "@home", "+"]
    for at, label in enumerate(labels * 4):
        write_picture(tmp_path / "pictures" / label / f"={at}.png", at)
    assert run("split", "pictures", "--out", "out.csv").code == 0
    items = discover("out.csv").items
    assert sorted({item.label or "" for item in items}) == sorted(labels)
    assert {item.path for item in items} == {str(path) for path in tmp_path.rglob("*.png")}
    for row in csv.reader((tmp_path / "out.csv").open(newline="")):
        assert not [cell for cell in row if cell[0] in "=+-@" and cell != "-7"]


def test_predictions_of_a_name_with_line_ends_are_one_row_each(run: Run, tmp_path: Path) -> None:
    for at in range(12):
        write_picture(tmp_path / "pictures" / ("=a" if at % 2 else "b\r\nb") / f"{at}.png", at)
    model = run("fit", "pictures", "--json", network=True).json["model"]
    write_picture(tmp_path / "new" / "\r=x\n.png", 1)
    (tmp_path / "new" / "\rbad\n.png").write_bytes(b"no picture")
    result = run("predict", model, "new", "--csv", "out.csv")
    assert result.out.count("\n") == 4
    header, row = csv.reader((tmp_path / "out.csv").open(newline=""))
    assert header == ["path", "label", "'=a", "b\r\nb"]
    assert row[0] == str(tmp_path / "new" / "\r=x\n.png")
    assert sum(map(float, row[2:])) == pytest.approx(1, abs=1e-5)
    listed = run("extract", "new", "--json", network=True).json["unreadable_file"]
    _, (path, _) = csv.reader(io.StringIO(Path(listed).read_bytes().decode(), newline=""))
    assert path == str(tmp_path / "new" / "\rbad\n.png")


# --- files ---


def test_a_new_file_has_the_umask_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "new", b"1")
        (tmp_path / "old").write_bytes(b"0")
        (tmp_path / "old").chmod(0o604)
        write(tmp_path / "old", b"1")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old")]
    assert modes == [0o640, 0o604]
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]


def test_a_link_is_followed_also_one_that_leads_nowhere_yet(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for _ in range(2):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to("folder/target")
        write(tmp_path / "link", b"1")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "folder" / "target").read_bytes() == b"1"


def test_pipes_and_devices_are_written_to(tmp_path: Path) -> None:
    write(Path("/dev/null"), b"1")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    os.mkfifo(tmp_path / "pipe")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write(tmp_path / "pipe", b"through the pipe")
    reader.join()
    assert found == [b"through the pipe"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("to", ["file", "pipe"])
def test_a_table_can_go_to_stdout(nasty: Path, to: str) -> None:
    words = [sys.executable, "-m", "featcache", "runs", "--csv", "/dev/stdout"]
    with (nasty.parent / "out").open("wb") as file:
        out = file if to == "file" else subprocess.PIPE
        done = subprocess.run(words, stdout=out, cwd=nasty.parent, check=True)
    lines = (done.stdout or (nasty.parent / "out").read_bytes()).decode().splitlines()
    assert lines[0].startswith('"id","command"')
    assert lines[-1].startswith("cache  ")


def test_where_there_is_no_room_the_old_file_stays(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "old").write_bytes(b"0")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        for name in ("old", "new"):
            with pytest.raises(OutputError, match=r"no room for .*: 2,000 bytes are needed"):
                write(tmp_path / name, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["old"]
    assert (tmp_path / "old").read_bytes() == b"0"


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").write_bytes(b"0")

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "old", b"1")
    assert os.listdir(tmp_path) == ["old"]
    assert (tmp_path / "old").read_bytes() == b"0"


def test_what_a_command_reads_is_not_written_over(run: Run, photos: Path, tmp_path: Path) -> None:
    assert run("extract", photos, network=True).code == 0
    model = tmp_path / run("fit", "--json").json["model"]
    picture = next(photos.rglob("*.png"))
    rows = "".join(f"{path},{path.parent.name}\n" for path in sorted(photos.rglob("*.png")))
    (tmp_path / "list.csv").write_text("path,label\n" + rows)
    cache = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    for words, said, code in [
        (("predict", model, "list.csv", "--csv", "list.csv"), "list.csv is both SOURCE and --csv", 2),
        (("predict", model, picture, "--csv", picture), "is both SOURCE and --csv", 2),
        (("predict", model, photos, "--csv", model), "is both MODEL and --csv", 2),
        (("audit", "--csv", "both", "--md", "both"), "both is both --csv and --md", 2),
        (("audit", "--csv", "cache/catalog.sqlite"), "lies in the cache", 1),
        (("export-onnx", model, "--out", model), "is both MODEL and --out", 2),
        (("cache", "export", next((tmp_path / "cache").rglob("seg-*.h5"))), "lies in the cache", 1),
    ]:
        result = run(*words)
        assert (result.code, result.out) == (code, ""), words
        assert said.replace("--csv", "csv").replace("--md", "md").replace("--out", "out") in result.err.replace(
            "--", ""
        )
    assert {path: path.read_bytes() for path in cache} == cache
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "list.csv").read_text().startswith("path,label")


@pytest.mark.parametrize(
    "words",
    [
        ("fit", "--csv", "cache/a.csv"),
        ("report", "--out", "cache/r.html"),
        ("compare", "--plot", "cache/a.png"),
        ("audit", "--write-manifest", "cache/m.csv"),
        ("finetune", "--md", "cache/a.md"),
        ("finetune", "--tensorboard", "cache/segments/tb"),
        ("finetune", "--tensorboard", "cache"),
        ("cache", "export", "cache/e.npz"),
        ("split", "photos", "--out", "cache/s.csv"),
        ("split", "photos", "--links", "cache/segments/s"),
    ],
    ids=" ".join,
)
def test_an_output_in_the_cache_is_refused_before_any_work(
    words: tuple[str, ...], run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("it works")

    Cache(tmp_path / "cache")
    before = sorted((tmp_path / "cache").rglob("*"))
    for name in ("experiment.last_extraction", "exchange.last_extraction", "splitting._read_all"):
        monkeypatch.setattr(f"featcache.api.{name}", work)
    result = run(*words)
    assert (result.code, result.out) == (1, ""), result.err
    assert "lies in the cache" in result.err
    assert sorted((tmp_path / "cache").rglob("*")) == before


def test_a_link_into_a_folder_that_is_not_there_is_said_to_be_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out.csv").symlink_to(tmp_path / "nowhere" / "a.csv")
    result = run("fit", "--csv", "out.csv")
    assert (result.code, "not allowed" in result.err) == (1, False)
    assert f"is a link to {tmp_path}/nowhere/a.csv, and there is no such folder" in result.err


def test_no_two_columns_of_predictions_have_one_name() -> None:
    names = ["path", "label", "class path", "=a"]
    found = Prediction("/p.png", "path", dict(zip(names, (0.1, 0.2, 0.3, 0.4), strict=True)))
    text = predict_csv(PredictSummary("m", "b", "f", (found,), ()))
    header, row = csv.reader(io.StringIO(text, newline=""))
    assert header == ["path", "label", "class class path", "class label", "class path", "'=a"]
    assert row == ["/p.png", "path", "0.1", "0.2", "0.3", "0.4"]
