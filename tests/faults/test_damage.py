"""Broken, foreign and newer files among the segments, as the commands meet them and mend them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import TINTS, Result, write_picture
from store_rows import HALF, commit, flip_bit, flip_bit_at, make_rows, segment_files

import featcache
from featcache.store import Cache
from featcache.store.segment import attributes_crc

Run = Callable[..., Result]
Damage = Callable[[Path], None]

BATCH = ("--batch-size", "10")
"""Pictures go through the network in the batches of the first extraction, so that vectors come out the same."""

pytestmark = pytest.mark.usefixtures("ready_network")


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory, seeded_weights: Path) -> Path:
    """The segments of the pictures of `photos`: three, with ten rows each."""
    folder = tmp_path_factory.mktemp("damage")
    for at, (label, tint) in enumerate(TINTS.items()):
        for number in range(10):
            write_picture(folder / "photos" / label / f"{number}.png", 100 * at + number, tint)
    options = featcache.Options("resnet18", seeded_weights, folder / "cache", batch_size=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featcache.store.writing.COMMIT_ROWS", 10)
        assert featcache.extract(folder / "photos", options).computed == 30
    assert len(list(folder.glob("cache/segments/*/seg-*.h5"))) == 3
    return folder / "cache" / "segments"


@pytest.fixture
def store(run: Run, photos: Path, tmp_path: Path, segments: Path) -> Path:
    """The folder of the segments in a cache that `photos` was extracted into, with file stats that are trusted."""
    for path in photos.rglob("*.png"):
        os.utime(path, (10**9, 10**9))
    shutil.copytree(segments, tmp_path / "cache" / "segments")
    assert run("extract", photos, "--json", network=True).json["computed"] == 0
    (folder,) = (tmp_path / "cache" / "segments").iterdir()
    return folder


def vectors(folder: Path) -> dict[bytes, bytes]:
    """Return key -> vector of all segments, read with h5py only."""
    found: dict[bytes, bytes] = {}
    for path in segment_files(folder):
        with h5py.File(path, "r", locking=False) as file:
            found |= {k.tobytes(): v.tobytes() for k, v in zip(file["keys"][()], file["features"][()], strict=True)}
    return found


def put_aside(store: Path) -> list[Path]:
    return sorted((store.parents[1] / "bad").glob("*"))


def last_line(result: Result) -> str:
    return result.err.splitlines()[-1]


def flip_in_features(segment: Path) -> None:
    flip_bit(segment, "features")


def flip_in_keys(segment: Path) -> None:
    flip_bit(segment, "keys")


def flip_in_attributes(segment: Path) -> None:
    with h5py.File(segment, "r", locking=False) as file:
        fingerprint = file.attrs["fingerprint"]
    flip_bit_at(segment, segment.read_bytes().index(fingerprint) + 20, 1)


def cut_to(share: float) -> Damage:
    def cut(segment: Path) -> None:
        os.truncate(segment, int(segment.stat().st_size * share))

    cut.__name__ = f"cut_to_{share}"
    return cut


def cut_one_byte(segment: Path) -> None:
    os.truncate(segment, segment.stat().st_size - 1)


def replace_by_other_fingerprint(segment: Path) -> None:
    with Cache(segment.parents[3] / "other") as other:
        shutil.copy(commit(other.features(HALF), make_rows(0, 4), "float16"), segment)


def replace_by_foreign_hdf5(segment: Path) -> None:
    segment.unlink(missing_ok=True)
    with h5py.File(segment, "w") as file:
        file["images"] = np.zeros((2, 2))


def replace_by_text(segment: Path) -> None:
    segment.write_text("not a segment\n" * 200)


DAMAGES = [
    flip_in_features,
    flip_in_keys,
    flip_in_attributes,
    cut_to(0),
    cut_to(0.01),
    cut_to(0.5),
    cut_to(0.9),
    cut_one_byte,
    replace_by_other_fingerprint,
    replace_by_foreign_hdf5,
    replace_by_text,
]
FOREIGN = [replace_by_other_fingerprint, replace_by_foreign_hdf5, replace_by_text]


def name_of(value: object) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize("damage", DAMAGES, ids=name_of)
def test_verify_names_a_broken_segment_and_extract_computes_only_its_rows_again(
    run: Run, photos: Path, store: Path, damage: Damage
) -> None:
    before = vectors(store)
    sound = run("cache", "verify", "--json")
    assert (sound.code, sound.json["broken"], sound.json["problems"]) == (0, [], [])
    broken = segment_files(store)[1]
    damage(broken)
    content = broken.read_bytes()
    found = run("cache", "verify", "--json")
    assert found.code == 1
    (said,) = found.json["broken"]
    assert broken.name in said
    assert broken.name in found.err
    assert last_line(found) == f"featcache: {photos} lacks 10 of 30 vectors (resnet18)"
    (dataset,) = found.json["datasets"]
    assert (dataset["valid"], dataset["missing"], dataset["stale"]) == (20, 10, 0)
    (kept,) = put_aside(store)
    assert kept.read_bytes() == content
    assert broken.name in kept.name
    assert not broken.exists()
    again = run("cache", "verify")
    assert (again.code, "broken  " in again.out, "lacks 10" in last_line(again)) == (1, False, True)
    mended = run("extract", photos, *BATCH, "--json", network=True).json
    assert (mended["computed"], mended["reused"]) == (10, 20)
    assert vectors(store) == before
    assert run("cache", "verify").code == 0


def extract(run: Run, photos: Path) -> Any:
    return run("extract", photos, *BATCH, "--json", network=True)


def extract_and_read_all_files(run: Run, photos: Path) -> Any:
    return run("extract", photos, "--rehash", *BATCH, "--json", network=True)


def extract_under_a_new_name(run: Run, photos: Path) -> Any:
    return run("extract", photos.rename(photos.with_name("renamed")), *BATCH, "--json", network=True)


@pytest.mark.parametrize("damage", [flip_in_features, flip_in_keys, cut_to(0), replace_by_text], ids=name_of)
@pytest.mark.parametrize("way", [extract, extract_and_read_all_files, extract_under_a_new_name], ids=name_of)
def test_every_way_to_extract_the_pictures_mends_a_broken_segment(
    run: Run, photos: Path, store: Path, damage: Damage, way: Callable[[Run, Path], Result]
) -> None:
    before = vectors(store)
    broken = segment_files(store)[2]
    damage(broken)
    result = way(run, photos)
    assert (result.code, result.json["computed"], result.json["reused"]) == (0, 10, 20)
    assert broken.name in result.err
    assert len(put_aside(store)) == 1
    assert vectors(store) == before
    assert run("fit").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip_in_features, flip_in_attributes, cut_to(0.5)], ids=name_of)
def test_verify_repair_mends_a_broken_segment_with_the_weights_it_remembers(
    run: Run, photos: Path, store: Path, damage: Damage
) -> None:
    before = vectors(store)
    broken = segment_files(store)[0]
    damage(broken)
    result = run("cache", "verify", "--repair", *BATCH, "--json")
    assert (result.code, result.json["problems"]) == (0, [])
    (said,) = result.json["broken"]
    assert broken.name in said
    (repaired,) = result.json["repaired"]
    assert repaired == f"{photos} extracted again: 20 reused, 10 computed (resnet18)"
    (dataset,) = result.json["datasets"]
    assert (dataset["valid"], dataset["missing"]) == (30, 0)
    assert vectors(store) == before
    assert run("cache", "verify").code == 0


def test_verify_repair_says_what_it_lacks_when_the_weights_are_gone(run: Run, photos: Path, store: Path) -> None:
    (note,) = store.parents[1].glob("runs/*.json")
    content = json.loads(note.read_text())
    del content["sha256"]  # as older versions wrote it
    content["summary"]["weights_file"] = content["summary"]["weights_file"].replace("seeded.pth", "gone.pth")
    note.write_text(json.dumps(content))
    flip_bit(segment_files(store)[0], "features")
    result = run("cache", "verify", "--repair", "--json")
    assert (result.code, result.json["repaired"]) == (1, [])
    missing, failed = result.json["problems"]
    assert missing == f"{photos} lacks 10 of 30 vectors (resnet18)"
    assert failed.startswith(f"{photos} cannot be repaired: ")
    assert "gone.pth" in failed


@pytest.mark.parametrize("damage", FOREIGN, ids=name_of)
@pytest.mark.parametrize("command", ["extract", "verify"])
def test_a_foreign_file_beside_the_segments_is_put_aside_and_costs_nothing(
    run: Run, photos: Path, store: Path, damage: Damage, command: str
) -> None:
    before = vectors(store)
    stray = store / "seg-00000000000000000001-0123abcd-00000001.h5"
    damage(stray)
    content = stray.read_bytes()
    words = ["extract", photos, "--json"] if command == "extract" else ["cache", "verify", "--json"]
    result = run(*words, network=command == "extract")
    assert result.code == 0
    assert stray.name in result.err
    if command == "extract":
        assert (result.json["computed"], result.json["reused"]) == (0, 30)
    else:
        assert stray.name in result.json["broken"][0]
        assert result.json["problems"] == []
    (kept,) = put_aside(store)
    assert kept.read_bytes() == content
    assert vectors(store) == before


def test_two_broken_segments_of_one_name_in_turn_are_both_kept(run: Run, photos: Path, store: Path) -> None:
    name = segment_files(store)[0].name
    good = (store / name).read_bytes()
    contents = []
    for text in (b"first", b"second"):
        (store / name).write_bytes(text)
        assert run("cache", "verify").code == 1
        contents.append(text)
        assert sorted(path.read_bytes() for path in put_aside(store)) == sorted(contents)
    (store / name).write_bytes(good)
    assert run("cache", "verify").code == 0


def tree(folder: Path) -> dict[str, str]:
    """Return the digest of every file that holds something: locks are empty, and runs are noted before the work."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "runs"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.stat().st_size}


@pytest.fixture
def newer(store: Path) -> Path:
    """A segment that a later version wrote."""
    segment = segment_files(store)[1]
    with h5py.File(segment, "r+") as file:
        file.attrs["format_version"] = 2
        file.attrs["crc32_attributes"] = attributes_crc(dict(file.attrs))
    return segment


@pytest.mark.parametrize(
    "words",
    [["extract", "photos"], ["fit"], *(["cache", *rest.split()] for rest in ("info", "verify"))]
    + [["cache", *rest.split()] for rest in ("gc --yes", "compact", "export out.npz")],
    ids=" ".join,
)
def test_a_segment_of_a_newer_format_is_refused_and_left_alone(
    run: Run, tmp_path: Path, newer: Path, words: list[str]
) -> None:
    before = tree(tmp_path / "cache")
    result = run(*words, network=words[0] == "extract")
    assert (result.code, result.out) == (1, "")
    assert result.err.count("\n") == 1
    assert newer.name in result.err
    assert "segment format 2, this featcache reads 1" in result.err
    assert tree(tmp_path / "cache") == before
    assert put_aside(newer.parent) == []


def lost(note: Path) -> None:
    note.unlink()


def emptied(note: Path) -> None:
    note.write_bytes(b"")


def garbage(note: Path) -> None:
    note.write_bytes(b"\xff\x00{")


def of_other_features(note: Path) -> None:
    note.write_text(note.read_text().replace('"precision": "fp32"', '"precision": "fp16"'))


@pytest.fixture(params=[lost, emptied, garbage, of_other_features], ids=name_of)
def spec_damage(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_lost_or_broken_spec_is_said_by_fit_and_written_anew_by_extract(
    run: Run, photos: Path, store: Path, spec_damage: Damage
) -> None:
    before, note = vectors(store), store / "spec.json"
    content = note.read_bytes()
    spec_damage(note)
    refused = run("fit")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.count("\n") == 1
    assert "spec.json" in refused.err
    assert "featcache extract" in refused.err
    assert run("cache", "info").code == 0
    again = run("extract", photos, "--json", network=True).json
    assert (again["computed"], again["reused"]) == (0, 30)
    assert note.read_bytes() == content
    assert vectors(store) == before
    assert run("fit").code == 0


def test_verify_does_not_call_a_cache_sound_whose_spec_is_lost(run: Run, store: Path, spec_damage: Damage) -> None:
    spec_damage(store / "spec.json")
    result = run("cache", "verify")
    assert (result.code, "sound" in result.out) == (1, False)
    assert "spec.json" in last_line(result)


def test_gc_deletes_no_vector_of_a_dataset_whose_spec_is_lost(run: Run, store: Path, spec_damage: Damage) -> None:
    before = vectors(store)
    spec_damage(store / "spec.json")
    result = run("cache", "gc", "--yes")
    assert (result.code, result.out) == (0, "nothing to delete: every vector is used by a dataset\n")
    assert vectors(store) == before
