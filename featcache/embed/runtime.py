"""ONNX Runtime enters; it leaves imported, and tells nobody what it is used for: every module imports it from here."""

from __future__ import annotations

import os

_QUIET = "ORT_DISABLE_TELEMETRY"
"""Without it ONNX Runtime, from 1.29 on, keeps a number of this device below `~/.cache` and sends what it does to
its makers. It is read while the library is loaded, and calls that switch it off afterwards come too late."""

_before = os.environ.get(_QUIET)
os.environ[_QUIET] = "1"
try:
    import onnxruntime as onnxruntime
finally:
    if _before is None:
        del os.environ[_QUIET]
    else:
        os.environ[_QUIET] = _before
