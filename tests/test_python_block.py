"""README's block on the functions, as it stands there, on a folder made up for it; each command has its function."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import TINTS, write_picture

import featcache
from featcache.cli import cli

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.slow
def test_the_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    for at, (split, n) in enumerate((("train", 6), ("test", 4))):
        for kind, (label, tint) in enumerate(TINTS.items()):
            for number in range(n):
                seed = 1000 * at + 100 * kind + number
                write_picture(tmp_path / "imgs" / split / label / f"{number}.png", seed, tint)
    write_picture(tmp_path / "new" / "a.jpg", 7, TINTS["sky"])
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"## In Python\n.*?```python\n(.*?)```", README.read_text(), re.DOTALL)
    known: dict[str, object] = {}
    exec(compile(block, "README", "exec"), known)
    assert len(known["X"]) == len(known["y"]) == len(known["paths"]) == len(known["splits"]) == 30  # type: ignore[arg-type]
    assert known["table"].shape == (18, 1282)  # type: ignore[attr-defined]
    assert len(known["tensors"]) == 18  # type: ignore[arg-type]
    assert re.fullmatch(r"[01]\.\d{3} \([01]\.\d{3}-[01]\.\d{3}\) on test, n=12\n", capsys.readouterr().out)
    assert [name for name, _ in known["ranks"]] == ["logreg", "svm"]  # type: ignore[attr-defined]
    assert {row.per_class for row in known["curve"]} == {2, 4, None}  # type: ignore[attr-defined]
    assert known["tuned"].n_test == 12  # type: ignore[attr-defined]
    (label,) = known["labels"]  # type: ignore[misc]
    assert label in TINTS
    assert len(known["alike"]) == 3  # type: ignore[arg-type]
    assert (tmp_path / "classifier.onnx").exists()
    assert "<html" in Path(str(known["page"])).read_text()
    assert isinstance(known["suspects"], list)


def test_each_command_has_its_function() -> None:
    verbs = {name.replace("-", "_") for name in cli.commands} - {"cache", "demo"}
    verbs |= {f"cache_{name}" for name in cli.commands["cache"].commands}  # type: ignore[attr-defined]
    text = README.read_text()
    section = text[text.index("## In Python") : text.index("## What the cache looks like")]
    for verb in verbs:
        assert callable(getattr(featcache, verb))
        assert verb in section, verb
