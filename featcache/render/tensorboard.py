"""Epochs of a training enter; scalars that TensorBoard shows leave, in the folder that was named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from featcache.errors import OutputError
from featcache.records.finetuning import EpochRow


class Board:
    """Writes one point an epoch to each curve; raises `OutputError` where TensorBoard is missing, or the folder.

    TensorBoard shows the file while it grows, so it is no whole one before the end; each point in it is.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise OutputError("TensorBoard is not installed: pip install 'featcache[tensorboard]'") from error
        self._folder = folder
        with self._writing():
            self._writer: Any = SummaryWriter(str(folder))

    def add(self, row: EpochRow) -> None:
        """Write an epoch's losses, accuracies and learning rate."""
        points = {
            "loss/train": row.train_loss,
            "loss/validation": row.val_loss,
            "accuracy/train": row.train_accuracy,
            "accuracy/validation": row.val_accuracy,
            "learning rate": row.lr,
        }
        with self._writing():
            for name, value in points.items():
                if value is not None:
                    self._writer.add_scalar(name, value, row.epoch)
            self._writer.flush()

    def __enter__(self) -> Board:
        """Return the board itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file; where a training fails, that is what is said."""
        with self._writing() if kind is None else suppress(OSError):
            self._writer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write to {self._folder}: {error.strerror or error}") from error
