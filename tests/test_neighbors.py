"""The pictures most like one: exact beside a plain search, in any blocks, with copies, ties and faults."""

from __future__ import annotations

import csv
import hashlib
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from conftest import TINTS, Result, write_picture
from store_rows import HALF, SPEC, flip_bit, segment_files

import featcache
from featcache import sealed, search
from featcache.api import indexing, neighboring
from featcache.errors import CacheError, DatasetError, UsageError, WeightsError
from featcache.records import Features, FeatureSpec
from featcache.records.neighbors import NeighborsSummary
from featcache.store import segment, writing
from featcache.store.exchange import Exchange, packed

Run = Callable[..., Result]
Vectors = npt.NDArray[np.floating]

pytestmark = pytest.mark.usefixtures("one_thread", "ready_network")


def known(
    folder: Path, X: Vectors, keys: Sequence[bytes] = (), spec: FeatureSpec = SPEC, name: str = "vectors"
) -> featcache.Options:
    """A cache with these vectors as one dataset; its first picture is a file that is there."""
    picture = folder / "first.bin"
    picture.write_bytes(b"first")
    keys = keys or [hashlib.sha256(b"first").digest(), *(number.to_bytes(32, "big") for number in range(1, len(X)))]
    paths = (str(picture), *(f"/gone/{number}.jpg" for number in range(1, len(X))))
    labels = np.array([f"class {number % 3}" for number in range(len(X))], np.str_)
    splits = np.array(["train", "test", ""] * len(X))[: len(X)]
    features = Features(X.astype(spec.dtype), labels, paths, splits, tuple(keys), spec.fingerprint)
    (folder / f"{name}.npz").write_bytes(packed(folder / f"{name}.npz", Exchange(features, spec, "made up")))
    options = featcache.Options(cache=folder / "cache")
    featcache.cache_import(folder / f"{name}.npz", options=options)
    return options


def vectors(n: int, dim: int = 24, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def brute_force(X: Vectors, row: int, k: int) -> tuple[list[int], list[float]]:
    """Every cosine in float64, sorted: the other rows most like one, and how much."""
    Z = X.astype(np.float64)
    Z /= np.linalg.norm(Z, axis=1, keepdims=True)
    cosines = Z @ Z[row]
    order = [int(at) for at in np.argsort(-cosines, kind="stable") if at != row][:k]
    return order, cosines[order].tolist()


def numbers(found: NeighborsSummary) -> list[int]:
    return [int(Path(row.path).stem) for row in found.rows]


def ask(folder: Path, options: featcache.Options, k: int = 10) -> NeighborsSummary:
    return featcache.neighbors(folder / "first.bin", k, options=options)


class TestExact:
    @pytest.mark.parametrize("spec", [SPEC, HALF], ids=["float32", "float16"])
    @pytest.mark.parametrize("k", [1, 10, 299, 1000])
    def test_all_are_compared_as_a_plain_search_does(self, tmp_path: Path, spec: FeatureSpec, k: int) -> None:
        options = known(tmp_path, vectors(300), spec=spec)
        found = ask(tmp_path, options, k)
        expected, cosines = brute_force(featcache.load_features(options=options).X, 0, k)
        assert numbers(found) == expected
        np.testing.assert_allclose([row.similarity for row in found.rows], cosines, atol=1e-12)
        assert [row.rank for row in found.rows] == list(range(1, min(k, 299) + 1))
        assert found.pictures == 299
        assert [row.label for row in found.rows] == [f"class {number % 3}" for number in expected]

    @pytest.mark.parametrize("piece", [1, 7, 1000])
    def test_small_pieces_and_many_segments_give_what_one_block_gives(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
    ) -> None:
        X = vectors(500)
        X[100:130] = X[40]
        whole = ask(tmp_path, known(tmp_path, X), 60)
        monkeypatch.setattr(segment, "CHUNK_BYTES", piece * 24 * 4)
        monkeypatch.setattr(writing, "COMMIT_ROWS", 1)
        monkeypatch.setattr(writing, "COMPACT_AT", 10**9)
        (tmp_path / "small").mkdir()
        small = known(tmp_path / "small", X)
        assert [(row.similarity, Path(row.path).name) for row in ask(tmp_path / "small", small, 60).rows] == [
            (row.similarity, Path(row.path).name) for row in whole.rows
        ]

    def test_equals_come_in_the_order_of_the_dataset(self, tmp_path: Path) -> None:
        X = vectors(400)
        same = [391, 17, 200, 3, 399, 64]
        X[same] = X[0] + 0.01
        assert numbers(ask(tmp_path, known(tmp_path, X), 4)) == [3, 17, 64, 200]

    def test_lengths_do_not_matter_and_a_vector_of_zeros_is_like_nothing(self, tmp_path: Path) -> None:
        X = vectors(50)
        X[1], X[2], X[3] = 1000 * X[0], -X[0], 0
        found = {int(Path(row.path).stem): row.similarity for row in ask(tmp_path, known(tmp_path, X), 100).rows}
        assert found[1] == pytest.approx(1, abs=1e-12)
        assert found[2] == pytest.approx(-1, abs=1e-12)
        assert found[3] == 0

    def test_only_pictures_of_the_dataset_are_looked_at(self, tmp_path: Path) -> None:
        X = vectors(40)
        known(tmp_path, X[20:], [number.to_bytes(32, "big") for number in range(100, 120)], name="other")
        options = known(tmp_path, X[:20])
        found = ask(tmp_path, options, 50)
        assert (found.dataset, found.pictures, len(found.rows)) == (str(tmp_path / "vectors.npz"), 19, 19)
        named = featcache.neighbors("/gone/3.jpg", 50, tmp_path / "other.npz", options)
        assert (named.dataset, named.pictures) == (str(tmp_path / "other.npz"), 19)
        assert "/gone/3.jpg" not in [row.path for row in named.rows]

    def test_a_picture_that_has_changed_is_still_left_out_itself(self, tmp_path: Path) -> None:
        X = vectors(20)
        options = known(tmp_path, X)
        other = [hashlib.sha256(b"changed").digest(), *(number.to_bytes(32, "big") for number in range(50, 69))]
        known(tmp_path, X[::-1], other, name="other")  # so that the cache knows the vector of the new content
        (tmp_path / "first.bin").write_bytes(b"changed")
        found = featcache.neighbors(tmp_path / "first.bin", 50, tmp_path / "vectors.npz", options)
        assert sorted(numbers(found)) == list(range(1, 20))
        assert found.rows[0].similarity == pytest.approx(1, abs=1e-12)

    def test_a_broken_segment_is_never_searched(self, tmp_path: Path) -> None:
        options = known(tmp_path, vectors(60))
        (file,) = (tmp_path / "cache").rglob("seg-*.h5")
        flip_bit(file, "features")
        with pytest.raises(featcache.errors.FeatcacheError):
            ask(tmp_path, options)
        assert not segment_files(file.parent)


class TestPictures:
    """The command on pictures, with a network whose weights are random: likeness means nothing, its rules do."""

    @pytest.fixture
    def extracted(self, tmp_path: Path, run: Run) -> Path:
        root = tmp_path / "photos"
        for number in range(3):
            for label, tint in TINTS.items():
                write_picture(root / label / f"{number}.png", 10 * number + len(label), tint)
        shutil.copy(root / "sky/2.png", root / "sand/copy.png")
        assert run("extract", root, network=True).code == 0
        return root

    def test_the_picture_itself_is_left_out_and_its_copy_is_shown(self, extracted: Path, run: Run) -> None:
        found = run("neighbors", extracted / "sky/2.png", "--json").json
        paths = [row["path"] for row in found["rows"]]
        assert str(extracted / "sky/2.png") not in paths
        assert paths[0] == str(extracted / "sand/copy.png")
        assert [row["copy"] for row in found["rows"]] == [True] + [False] * 8
        assert found["rows"][0]["similarity"] == pytest.approx(1, abs=1e-12)
        assert found["pictures"] == 9
        text = run("neighbors", extracted / "sky/2.png", "-k", "1").out.splitlines()
        assert text[2].split() == ["1", "sand/copy.png", "sand", "1.0000", "same", "file"]
        assert "copy" not in run("neighbors", extracted / "leaf/0.png", "-k", "1").out.splitlines()[0]

    def test_the_picture_itself_is_known_by_another_name(self, extracted: Path, tmp_path: Path, run: Run) -> None:
        (tmp_path / "link").symlink_to(extracted)
        found = run("neighbors", tmp_path / "link/sky/2.png", "--json").json
        assert [Path(row["path"]).name for row in found["rows"] if row["copy"]] == ["copy.png"]

    def test_any_file_is_taken_and_computed_with_the_network_of_the_dataset(
        self, extracted: Path, tmp_path: Path, run: Run
    ) -> None:
        outside = write_picture(tmp_path / "outside.png", 12345)
        found = run("neighbors", outside, "--json", "-k", "3").json
        assert (found["pictures"], found["notices"]) == (10, [])
        # The same file as a part of the dataset has the same neighbours.
        shutil.copy(outside, extracted / "sky/outside.png")
        assert run("extract", extracted, network=True).code == 0
        again = run("neighbors", extracted / "sky/outside.png", "--json", "-k", "3").json
        assert again["rows"] == found["rows"]
        loaded = featcache.load_features()
        at = loaded.paths.index(str(extracted / "sky/outside.png"))
        assert [row["path"] for row in found["rows"]] == [loaded.paths[row] for row in brute_force(loaded.X, at, 3)[0]]

    def test_a_gone_folder_is_no_hindrance(self, extracted: Path, tmp_path: Path, run: Run) -> None:
        outside = write_picture(tmp_path / "outside.png", 12345)
        before = [run("neighbors", path, "--json").json for path in (outside, extracted / "sky/2.png")]
        shutil.rmtree(extracted)
        after = [run("neighbors", path, "--json").json for path in (outside, extracted / "sky/2.png")]
        assert [found["rows"] for found in after] == [found["rows"] for found in before]
        assert after[0]["notices"] == []
        assert after[1]["notices"] == [f"{extracted}/sky/2.png is not there: its vector is taken as it is in the cache"]
        write_picture(tmp_path / "another.png", 54321)
        assert run("neighbors", tmp_path / "another.png").code == 0

    def test_lost_weights_are_asked_for_only_where_something_is_computed(
        self, extracted: Path, tmp_path: Path, run: Run, seeded_weights: Path
    ) -> None:
        weights = Path(shutil.copy(seeded_weights, tmp_path / "mine.pth"))
        run("extract", extracted, "--backbone", "resnet18", "--weights", weights)
        weights.rename(tmp_path / "moved.pth")
        assert run("neighbors", extracted / "sky/2.png").code == 0
        outside = write_picture(tmp_path / "outside.png", 12345)
        refused = run("neighbors", outside)
        assert (refused.code, refused.out) == (1, "")
        assert refused.err.count("\n") == 1
        assert run("neighbors", outside, "--weights", tmp_path / "moved.pth").code == 0

    def test_the_rows_are_written_to_a_file(self, extracted: Path, tmp_path: Path, run: Run) -> None:
        found = run("neighbors", extracted / "sky/2.png", "--json", "--csv", tmp_path / "rows.csv").json
        with open(tmp_path / "rows.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["rank"], row["path"], row["label"], row["split"], float(row["similarity"])) for row in rows] == [
            (str(row["rank"]), row["path"], row["label"], row["split"], row["similarity"]) for row in found["rows"]
        ]

    def test_what_is_no_picture_is_said_in_one_line(self, extracted: Path, tmp_path: Path, run: Run) -> None:
        (tmp_path / "broken.png").write_text("no picture")
        (tmp_path / "folder").mkdir()
        for name, reason in (
            ("broken.png", "not a picture in a format that is decoded here"),
            ("absent.png", "no such file or directory"),
            ("folder", "is a directory"),
        ):
            refused = run("neighbors", tmp_path / name)
            assert (refused.code, refused.out) == (1, "")
            assert refused.err == f"featcache: cannot read the picture {tmp_path / name}: {reason}\n"


def test_there_has_to_be_a_cache_and_a_dataset(tmp_path: Path, run: Run) -> None:
    picture = write_picture(tmp_path / "one.png", 1)
    refused = run("neighbors", picture)
    assert (refused.code, refused.out) == (1, "")
    assert "run `featcache extract FOLDER` first" in refused.err
    run("cache", "import", tmp_path / "nothing.npz")  # makes an empty cache
    assert "run `featcache extract FOLDER` first" in run("neighbors", picture).err
    options = known(tmp_path, vectors(5))
    assert options.cache == tmp_path / "cache"
    assert "holds no extraction of" in run("neighbors", tmp_path / "first.bin", "--dataset", "nowhere").err


def test_a_dataset_that_the_catalog_lost_is_said(tmp_path: Path) -> None:
    options = known(tmp_path, vectors(5))
    (tmp_path / "cache/catalog.sqlite").unlink()
    write_picture(tmp_path / "one.png", 1)
    with pytest.raises(DatasetError, match="are not in the catalog"):
        featcache.neighbors(tmp_path / "one.png", options=options)


def test_a_dataset_of_the_picture_alone_has_no_neighbours(tmp_path: Path) -> None:
    found = ask(tmp_path, known(tmp_path, vectors(1)))
    assert (found.pictures, found.rows) == (0, ())


def test_fewer_than_one_picture_cannot_be_asked_for(tmp_path: Path, run: Run) -> None:
    assert run("neighbors", "x.png", "-k", "0").code == 2
    with pytest.raises(UsageError, match="the nearest 0 pictures"):
        featcache.neighbors("x.png", 0)


def test_other_weights_are_refused(tmp_path: Path, photos: Path, run: Run, seeded_weights: Path) -> None:
    import torch

    run("extract", photos, network=True)
    state = torch.load(seeded_weights)
    state["conv1.weight"] += 1
    torch.save(state, tmp_path / "other.pth")
    outside = write_picture(tmp_path / "outside.png", 12345)
    with pytest.raises(WeightsError, match="give the right --weights FILE"):
        featcache.neighbors(outside, options=featcache.Options(weights=tmp_path / "other.pth"))


class TestIndex:
    """Candidates from an index, among vectors in clusters, beside all compared."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make an index where it saves nothing, and let it leave out as much as a large one does."""
        pytest.importorskip("faiss")
        monkeypatch.setattr(indexing, "FEWEST", 1000)
        monkeypatch.setattr(indexing, "A_LIST", 30)
        monkeypatch.setattr(neighboring, "CANDIDATES", 100)
        monkeypatch.setattr(search, "PROBED", 8)

    @staticmethod
    def clusters(n: int = 1500, seed: int = 0) -> Vectors:
        r = np.random.default_rng(seed)
        return (vectors(30, 96, seed)[r.integers(30, size=n)] + 0.5 * r.standard_normal((n, 96))).astype(np.float32)

    @staticmethod
    def ask(folder: Path, options: featcache.Options, k: int = 10) -> NeighborsSummary:
        return featcache.neighbors(folder / "first.bin", k, options=options, index=True)

    @staticmethod
    def files(folder: Path) -> list[Path]:
        return sorted((folder / "cache/indexes").iterdir())

    @pytest.mark.slow
    def test_most_of_the_nearest_are_found_and_compared_exactly(self, tmp_path: Path) -> None:
        X = self.clusters(3000)
        known(tmp_path, X[:700], spec=HALF, name="part")  # in a segment of its own
        options = known(tmp_path, X, spec=HALF)
        loaded = featcache.load_features(options=options).X
        hits = 0
        for row in range(1, 3000, 150):
            found = featcache.neighbors(f"/gone/{row}.jpg", options=options, index=True)
            expected, cosines = brute_force(loaded, row, 3000)
            exact = dict(zip(expected, cosines, strict=True))
            got = [0 if near.path.endswith("first.bin") else int(Path(near.path).stem) for near in found.rows]
            np.testing.assert_allclose([near.similarity for near in found.rows], [exact[at] for at in got], atol=1e-12)
            hits += len(set(got) & set(expected[:10]))
            assert found.pictures == 2999
            assert found.index == "faiss IVF54,RaBitQ, 8 of 54 lists looked into, 199 pictures compared"
        assert hits >= 190  # of 200
        assert len(list((tmp_path / "cache").rglob("seg-*.h5"))) == 2

    @pytest.mark.slow
    def test_it_is_made_once_and_anew_after_the_dataset_changed(self, tmp_path: Path) -> None:
        threads = pytest.importorskip("faiss").omp_get_max_threads()
        before = self.ask(tmp_path, known(tmp_path, self.clusters()))
        assert pytest.importorskip("faiss").omp_get_max_threads() == threads
        (file,) = self.files(tmp_path)
        made = file.stat().st_mtime_ns
        options = featcache.Options(cache=tmp_path / "cache")
        assert self.ask(tmp_path, options).rows == before.rows
        assert [path.stat().st_mtime_ns for path in self.files(tmp_path)] == [made]
        changed = [hashlib.sha256(b"first").digest(), *(number.to_bytes(32, "big") for number in range(1499, 0, -1))]
        known(tmp_path, self.clusters(), changed)  # the same pictures in another order
        after = self.ask(tmp_path, options)
        assert [row.similarity for row in after.rows] == [row.similarity for row in before.rows]
        assert [1500 - at for at in numbers(after)] == numbers(before)
        assert len(self.files(tmp_path)) == 1
        assert self.files(tmp_path) != [file]

    @pytest.mark.slow
    def test_an_old_one_is_cleaned_up_and_a_current_one_stays(self, tmp_path: Path) -> None:
        options = known(tmp_path, self.clusters())
        self.ask(tmp_path, options)
        assert featcache.cache_gc(options=options).indexes == 0
        (old,) = self.files(tmp_path)
        known(tmp_path, self.clusters())
        size = old.stat().st_size
        assert featcache.cache_gc(dry_run=True, options=options).bytes == size
        cleaned = featcache.cache_gc(options=options)
        assert (cleaned.indexes, cleaned.bytes, self.files(tmp_path)) == (1, size, [])

    def test_a_damaged_one_is_put_aside_and_made_again(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        options = known(tmp_path, self.clusters())
        before = self.ask(tmp_path, options)
        (file,) = self.files(tmp_path)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        assert self.ask(tmp_path, options).rows == before.rows
        assert f"{file} is damaged; moved to" in caplog.text
        assert [path.read_bytes() for path in (tmp_path / "cache/bad").iterdir()] == [data]
        assert len(self.files(tmp_path)) == 1

    @pytest.mark.parametrize(
        "kind", ["empty", "other numbers", "one number", "huge numbers", "other codes", "dim", "format", "sparse"]
    )
    def test_a_whole_one_that_somebody_else_put_there_is_put_aside_and_made_again(
        self, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        options = known(tmp_path, self.clusters())
        before = self.ask(tmp_path, options)
        (file,) = self.files(tmp_path)
        content = sealed.unpack(file.read_bytes())
        arrays = {name: tensor.array() for name, tensor in content.tensors.items()}
        noted = dict(content.known or {})
        ids = arrays["ids"]
        if kind == "empty":
            arrays |= {"sizes": 0 * arrays["sizes"], "ids": ids[:0], "codes": arrays["codes"][:0]}
        elif kind == "other numbers":
            arrays["ids"] = (ids >> 32 << 32) + (ids + 1) % 2**32
        elif kind == "one number":
            arrays["ids"] = np.full_like(ids, ids[0])
        elif kind == "huge numbers":
            arrays["ids"] = ids | 2**31
        elif kind == "other codes":
            arrays["ids"] = ids ^ 2**40
        elif kind == "dim":
            small = search.Index.train(vectors(400, 8, 0), 4)
            made = small.filled([(np.arange(400), vectors(400, 8, 0))]).to_bytes()
        elif kind == "format":
            noted = {"format": "x"}
        file.unlink()
        data = made if kind == "dim" else sealed.pack({n: sealed.of_array(a) for n, a in arrays.items()}, noted)
        put = file.with_name(f"{file.name[:16]}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors")
        put.write_bytes(data)
        if kind == "sparse":
            with put.open("r+b") as opened:
                opened.truncate(2**40)
        assert self.ask(tmp_path, options).rows == before.rows
        assert f"the index {put} is" in caplog.text or f"the index {put} was not made of the vectors" in caplog.text
        assert self.files(tmp_path) == [file]
        assert [path.name[:16] for path in (tmp_path / "cache/bad").iterdir()] == [file.name[:16]]
        caplog.clear()
        assert self.ask(tmp_path, options).rows == before.rows
        assert "the index" not in caplog.text

    def test_damaged_vectors_are_never_compared(self, tmp_path: Path) -> None:
        X = self.clusters()
        known(tmp_path, X[:100], name="part")  # the picture asked for is in a sound segment of its own
        options = known(tmp_path, X)

        def nearest(k: int) -> list[str]:
            found = featcache.neighbors("/gone/5.jpg", k, options=options, index=True)
            return [Path(row.path).stem for row in found.rows]

        found = nearest(1000)
        near = next(at for at in range(100, 1500) if str(at) in found)
        far = next(at for at in range(100, 1500) if str(at) not in found)
        whole = segment_files(tmp_path / "cache/segments" / SPEC.fingerprint[:16])[-1]
        with h5py.File(whole, "r") as opened:
            start = opened["features"].id.get_offset()
        for at in (far, near):
            data = bytearray(whole.read_bytes())
            data[start + 4 * 96 * (at - 100)] ^= 1
            whole.write_bytes(data)
            if at == far:  # it is not looked at
                assert nearest(10) == found[:10]
        with pytest.raises(CacheError, match="are not what its index was made of: run `featcache cache verify`"):
            nearest(1000)
        assert not whole.exists()

    @pytest.mark.parametrize("k", [150, 1999, 5000])
    def test_lists_are_looked_into_until_there_are_enough(self, tmp_path: Path, k: int) -> None:
        X = self.clusters(2000)
        X[100:130] = X[40]
        options = known(tmp_path, X)
        found, exact = self.ask(tmp_path, options, k), ask(tmp_path, options, k)
        assert len(found.rows) == min(k, 1999)
        assert found.pictures == exact.pictures == 1999
        if k > 150:
            assert found.rows == exact.rows
        else:
            assert len({row.path for row in found.rows} & {row.path for row in exact.rows}) > 0.9 * k

    def test_the_picture_is_left_out_and_its_copy_is_shown(self, tmp_path: Path) -> None:
        X = self.clusters()
        X[7] = X[0]
        first = hashlib.sha256(b"first").digest()
        keys = [first if at in (0, 7) else at.to_bytes(32, "big") for at in range(1500)]
        options = known(tmp_path, X, keys)
        (tmp_path / "link").symlink_to(tmp_path)
        for folder in (tmp_path, tmp_path / "link"):
            found = featcache.neighbors(folder / "first.bin", 5, options=options, index=True)
            assert [row.path for row in found.rows if row.copy] == ["/gone/7.jpg"]
            assert found.pictures == 1499

    def test_a_small_dataset_is_compared_and_that_is_said(self, tmp_path: Path) -> None:
        options = known(tmp_path, self.clusters(999))
        found = self.ask(tmp_path, options)
        assert (found.rows, found.index) == (ask(tmp_path, options).rows, None)
        assert found.notices[0].startswith("no index: fewer than")
        assert not (tmp_path / "cache/indexes").exists()

    def test_the_command_says_that_it_is_approximate(self, tmp_path: Path, run: Run) -> None:
        known(tmp_path, self.clusters(1200))
        said = run("neighbors", tmp_path / "first.bin", "--index").out
        assert "approximate: faiss IVF34,RaBitQ, 8 of 34 lists looked into, 199 pictures compared" in said
        assert "1,199 other pictures\n" in said
        assert run("neighbors", tmp_path / "first.bin", "--index", "--json").json["index"].startswith("faiss IVF34")
        assert run("neighbors", tmp_path / "first.bin", "--json").json["index"] is None


def test_an_index_without_faiss_is_refused_in_one_line(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(tmp_path, vectors(5))
    monkeypatch.setitem(sys.modules, "faiss", None)
    refused = run("neighbors", tmp_path / "first.bin", "--index")
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert "pip install 'featcache[index]'" in refused.err
