"""The bytes of a picture file enter; their content key, under which its vectors are kept, leaves."""

from __future__ import annotations

import hashlib

from featcache.layout import is_as_ever

_ANEW = b"TIFF whose pixels Pillow gives wrong\0"
"""Hashed before a TIFF that older versions decoded wrong, so that nobody takes its old vector for the right one."""


def content_key(data: bytes) -> bytes:
    """Return the content key (32 bytes) of a picture file: the sha256 of its bytes, of some TIFF files after a mark."""
    known = hashlib.sha256(b"" if is_as_ever(data) else _ANEW)
    known.update(data)
    return known.digest()
