"""Values of other types, and texts that can name nothing, given to each public function: one line of ours."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import featcache
from featcache.errors import FeatcacheError

FUNCTIONS = sorted(
    name for name in featcache.__all__ if inspect.isfunction(getattr(featcache, name)) and name not in ("demo",)
)

NAMELESS = ["\ud800", "a\0b", Path("\ud800"), Path("a\0b")]
OTHERS: list[Any] = [5.5, True, float("nan")]


def required(function: Any) -> dict[str, Any]:
    """Return values for the parameters that must be given; no file is called so."""
    kinds = {"number": 1, "first": 1, "second": 1}
    parameters = inspect.signature(function).parameters.values()
    return {each.name: kinds.get(each.name, "nothing") for each in parameters if each.default is each.empty}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("value", NAMELESS, ids=repr)
def test_a_text_that_can_name_nothing_is_one_line(name: str, value: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    function = getattr(featcache, name)
    for parameter in inspect.signature(function).parameters:
        for given in (value, [value]):
            with pytest.raises(FeatcacheError) as error:
                function(**required(function) | {parameter: given})
            assert "\n" not in str(error.value)
            str(error.value).encode()  # half a character is spelled out


@pytest.mark.parametrize("value", [*OTHERS, {1: 2}, {"label": 5}, Path("x"), "label=x"], ids=repr)
def test_columns_that_are_no_dictionary_of_texts_are_named(value: Any, tmp_path: Path) -> None:
    with pytest.raises(FeatcacheError, match=r"split\(columns=.*: give a dictionary from str to str or None"):
        featcache.split(tmp_path, columns=value)


@pytest.mark.parametrize("value", [{}, {"a"}, (1,), (1, 2, 3), "12", 5], ids=repr)
def test_a_shard_that_is_no_pair_of_numbers_is_named(value: Any, tmp_path: Path) -> None:
    with pytest.raises(FeatcacheError, match=r"extract\(shard=.*: give \(int, int\) or None"):
        featcache.extract(tmp_path, shard=value)
