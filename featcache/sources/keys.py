"""The bytes of a picture file enter; their content key, under which its vectors are kept, leaves."""

from __future__ import annotations

import hashlib

from featcache import depths, layout, oddities, transparency
from featcache.dicom import is_dicom

_ANEW = b"TIFF whose pixels Pillow gives wrong\0"
"""Hashed before a file that older versions decoded wrong, of whatever format, so that nobody takes its old vector for
the right one."""

_DICOM = b"DICOM whose numbers become pixels by rule 1\0"
"""Hashed before a DICOM file: another rule needs another mark."""


def content_key(data: bytes) -> bytes:
    """Return the content key (32 bytes) of a picture file: the sha256 of its bytes, of some files after a mark.

    These are DICOM, and TIFF, JPEG 2000, PNG, BMP and others that older versions decoded wrong.
    """
    known = hashlib.sha256(_DICOM if is_dicom(data) else b"" if is_as_ever(data) else _ANEW)
    known.update(data)
    return known.digest()


def is_as_ever(data: bytes) -> bool:
    """Tell whether a file's pixels are those that Pillow gives, as in every version."""
    return all(kind.is_as_ever(data) for kind in (layout, depths, transparency, oddities))
