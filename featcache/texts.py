"""Texts that somebody else wrote enter, one or a column of an Arrow table; those leave that a cache can keep apart."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST = 2**20
"""No path or line of a list has more characters."""

LONGEST_LABEL = 1000
"""Each label is kept as long as the longest of its dataset in an array, and once a picture in the catalog."""

ROWS_AT_ONCE = 64
"""Of a column of texts in Parquet: in its dictionary a few bytes stand for many, which are known only when read."""

MOST_SAID = 1000

MOST_UNPACKED, ALWAYS_BYTES = 200, 2**26
"""A table's texts take no more memory than so often the bytes of its file, or than these."""


def flaw(text: str, longest: int = LONGEST) -> str | None:
    """Return why a label or path cannot be kept, in a few words; `None` where it can."""
    if len(text) > longest:
        return f"it has {len(text):,} characters, and at most {longest:,} are taken"
    if "\0" in text:  # NumPy leaves it out at an end, and takes two labels for one
        return "it has a NUL character in it"
    return "it has half a character (a surrogate) in it" if has_half(text) else None


def has_half(text: str) -> bool:
    """Tell whether a text has half a character in it, which no name of a file can have."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return True
    return False


def spelled_out(value: Any) -> Any:
    """Return plain values in which texts with half a character have all that is not ASCII spelled out."""
    if isinstance(value, Mapping):
        return {spelled_out(name): spelled_out(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [spelled_out(each) for each in value]
    if isinstance(value, str) and not value.isascii() and has_half(value):
        return value.encode("ascii", "backslashreplace").decode()
    return value


def shortened(text: str, most: int) -> str:
    """Return a text that somebody else wrote, cut in its middle where it has more characters than `most`."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most - most // 2) :]}"


def is_undecoded(text: str) -> bool:
    """Tell whether a text has bytes in it that are not in UTF-8."""
    return not text.isascii() and any("\udc80" <= letter <= "\udcff" for letter in text)


def flaw_of_names(names: Any) -> str | None:
    """Return why the names of classes cannot be kept, in a few words; `None` where they can."""
    if not isinstance(names, Sequence) or isinstance(names, str):
        return "they are no list"
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name.strip():
            return f"{name!r:.60} is no text"
        if (said := flaw(name, LONGEST_LABEL)) is not None:
            return f"{name!r:.60}: {said}"
        if name in seen:
            return f"two classes are called {name!r:.60}"
        seen.add(name)
    return None


class Values:
    """Reads columns of texts and numbers of one file of `size` bytes, each text once; raises `ValueError`."""

    def __init__(self, size: int, longest: int = LONGEST) -> None:
        self._most = 4 * longest  # bytes of a character
        self._left = max(ALWAYS_BYTES, MOST_UNPACKED * size)
        self._kept: dict[Any, Any] = {}

    def of(self, array: Any) -> list[Any]:
        """Return the values of an Arrow array as Python's."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = array.type
        if pa.types.is_dictionary(kind):
            words = self.of(array.dictionary)
            return [None if at is None else words[at] for at in array.indices.to_pylist()]
        if is_number(kind):
            return list(array.to_pylist())
        if not is_text(kind):
            return _several(array)
        if (found := pc.max(pc.binary_length(array)).as_py() or 0) > self._most:
            raise ValueError(f"it has a text of {found:,} bytes, and at most {self._most:,} are taken")
        return [self._once(value) for value in array.to_pylist()]

    def _once(self, value: Any) -> Any:
        known = self._kept.get(value)
        if known is None and value is not None:
            known = self._kept[value] = value
            self._left -= len(value)
            if self._left < 0:
                raise ValueError("it unpacks to far more than its file could hold")
        return known


def _several(array: Any) -> list[Any]:
    """Return lists or tables of values, which are said and refused where the first one stands: all as that one."""
    inner = [array.type.field(at).type for at in range(array.type.num_fields)]
    first = next((at for at in range(len(array)) if array[at].is_valid), len(array))
    if not (inner and all(is_text(kind) or is_number(kind) for kind in inner)):
        raise ValueError(f"it holds {array.type}, neither texts nor numbers")
    if first < len(array) and len(array[first]) > MOST_SAID:
        raise ValueError(f"it holds lists of {len(array[first]):,} values, neither texts nor numbers")
    return [*[None] * first, *[value.as_py() for value in array[first : first + 1]] * (len(array) - first)]


def is_text(kind: Any) -> bool:
    """Tell whether an Arrow type is of texts, or of bytes."""
    import pyarrow as pa

    is_any = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(is_it(kind) for is_it in is_any)


def is_number(kind: Any) -> bool:
    """Tell whether an Arrow type is of numbers, of true and false, or of nothing."""
    import pyarrow as pa

    is_any = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean, pa.types.is_null)
    return any(is_it(kind) for is_it in is_any)
