"""Epochs of a training enter; scalars that TensorBoard shows leave, in the folder that was named."""

from __future__ import annotations

import io
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from featcache.errors import OutputError, refusal
from featcache.records.finetuning import EpochRow


class Board:
    """Writes one point an epoch to each curve; raises `OutputError` where TensorBoard is missing, or the folder.

    TensorBoard shows the file while it grows. Its own writer has a thread, of which a full disk makes a traceback.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise OutputError("TensorBoard is not installed: pip install 'featcache[tensorboard]'") from error
        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        self._records: Any = RecordWriter
        self._path = folder / f"events.out.tfevents.{time.time():010.0f}.{platform.node()}.{os.getpid()}"
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("xb", buffering=0)
        self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, row: EpochRow) -> None:
        """Write an epoch's losses, accuracies and learning rate."""
        points = {
            "loss/train": row.train_loss,
            "loss/validation": row.val_loss,
            "accuracy/train": row.train_accuracy,
            "accuracy/validation": row.val_accuracy,
            "learning rate": row.lr,
        }
        values = [{"tag": name, "simple_value": value} for name, value in points.items() if value is not None]
        self._write(self._event(wall_time=time.time(), step=row.epoch, summary=self._summary(value=values)))

    def __enter__(self) -> Board:
        """Return the board itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Any) -> None:
        """Write an event behind the others, whole or not at all."""
        out = io.BytesIO()
        self._records(out).write(event.SerializeToString())
        rest, before = out.getvalue(), self._file.tell()
        with self._writing():
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except BaseException:
                with suppress(OSError):
                    self._file.truncate(before)
                    if before == 0:
                        self._path.unlink()
                raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write to {self._path.parent}: {refusal(error)}") from error
