"""The bytes of a picture file enter; their content key, under which its vectors are kept, leaves."""

from __future__ import annotations

import hashlib

from featcache.dicom import is_dicom
from featcache.layout import is_as_ever

_ANEW = b"TIFF whose pixels Pillow gives wrong\0"
"""Hashed before a TIFF that older versions decoded wrong, so that nobody takes its old vector for the right one."""

_DICOM = b"DICOM whose numbers become pixels by rule 1\0"
"""Hashed before a DICOM file: another rule needs another mark."""


def content_key(data: bytes) -> bytes:
    """Return the content key (32 bytes) of a picture file: the sha256 of its bytes, of some files after a mark.

    These are DICOM, and TIFF that older versions decoded wrong.
    """
    known = hashlib.sha256(_DICOM if is_dicom(data) else b"" if is_as_ever(data) else _ANEW)
    known.update(data)
    return known.digest()
