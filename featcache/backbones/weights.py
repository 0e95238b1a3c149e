"""A file name, URL or path enters; verified weights on disk, or in a network, leave."""

from __future__ import annotations

import hashlib
import http.client
import io
import logging
import os
import pickletools
import re
import socket
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from featcache import sealed
from featcache.errors import WeightsError, WeightsUnavailableError, one_line, refusal
from featcache.process import Shared, filtering

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_old_kinds = filtering(("ignore", "", UserWarning), ("ignore", "", FutureWarning))
"""torch warns of old kinds of pickles, which are read or refused."""

TOP = "featcache_top."
"""What the names of a new top's tensors begin with, in files of fine-tuned networks."""

DOWNLOAD_TIMEOUT = 30.0
"""Seconds a silent server is waited for."""

_OLD_PICKLES = 5
"""A file of torch before 1.6 is so many pickles, one after another, and then the numbers."""

_CALLS = re.compile(
    r"collections OrderedDict|torch (Size|\w+Storage|bool|[a-z]+\d+\w*)|torch\.storage \w+Storage"
    r"|torch\.nn\.parameter Parameter|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter)"
)
"""What a state dict is made of; `torch float32` and its like are types of numbers."""

_logger = logging.getLogger(__name__)


@contextmanager
def _impatient() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


_impatience = Shared(_impatient)


def hub_file(name: str) -> Path:
    """Return where the torch hub folder has or would have a weights file (without importing torch)."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints" / name


def obtain(url: str) -> Path:
    """Return the weights file of `url`: the one in the torch hub folder, else downloaded into it.

    A download counts only whole and with the sha256 prefix that its name carries. Raises `WeightsUnavailableError`.
    """
    name = PurePosixPath(urlparse(url).path).name
    path = hub_file(name)
    if path.exists():
        return path
    promised = promised_hash(name)
    if promised is None:  # a download that was cut short could not be told from a whole one
        raise WeightsUnavailableError(f"{url} has no hash in its name: download it yourself and name it with --weights")
    try:
        with _impatience:
            with suppress(HTTPError):  # the server answers; without a network this ends before torch is imported
                urlopen(Request(url, method="HEAD")).close()
            from torch.hub import download_url_to_file

            _logger.warning("downloading %s to %s", url, path)
            path.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(url, str(path), promised, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = error.reason if type(error) is URLError else error
        raise WeightsUnavailableError(
            f"cannot download {url} ({reason}): put the file into {path.parent}, or use --backbone with --weights"
        ) from error
    return path


def promised_hash(name: str) -> str | None:
    """Return the sha256 prefix in a file name such as `resnet18-f37072fd.pth`, if there is one."""
    found = re.search(r"-([a-f0-9]{8,64})\.", name)
    return found[1] if found else None


def sha256(path: Path) -> str:
    """Return the sha256 (hex) of a weights file; raises `WeightsUnavailableError` where it cannot be read.

    A file in the torch hub folder must have the digest that its name promises (`-f37072fd.pth`), else `WeightsError`.
    """
    try:
        with sealed.opened(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsUnavailableError(f"cannot read the weights file {path}: {refusal(error)}") from error
    promised = promised_hash(path.name) if path == hub_file(path.name) else None
    if promised and not digest.startswith(promised):
        raise WeightsError(
            f"{path} is broken: its sha256 starts with {digest[:8]}, not with {promised} as its name says: "
            "remove it, and it is downloaded again"
        )
    return digest


def read_state(path: Path, digest: str | None = None) -> dict[str, Tensor]:
    """Return the state dict in a `.pth` (read with `weights_only=True`) or `.safetensors` file.

    The file is read once; with a `digest` these bytes must have that sha256 (hex). Raises `WeightsError` where they do
    not, or where the file is something else.
    """
    data = _read(path)
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise WeightsError(f"{path} has changed since its weights were looked up: run the same command again")
    try:
        state = _tensors(data) if path.suffix == sealed.SUFFIX else unpickled(data)
    except MemoryError:
        raise
    except Exception as error:  # unpickling broken bytes raises almost anything
        raise WeightsError(
            f"{path} is not a state dict that can be read safely ({type(error).__name__}): "
            "save one with torch.save(model.state_dict(), FILE)"
        ) from error
    import torch

    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and _is_plain(tensor)
        for name, tensor in state.items()
    ):
        raise WeightsError(
            f"{path} holds no plain state dict (name -> tensor): save it with torch.save(model.state_dict(), FILE)"
        )
    return dict(state)


def _is_plain(tensor: Tensor) -> bool:
    import torch

    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_complex())


def of_torch(tensor: Tensor) -> sealed.Tensor:
    """Return a tensor as a file holds it; raises `ValueError` for a type that is not kept."""
    import torch

    names = {dtype: name for name, dtype in _dtypes().items()}
    if tensor.dtype not in names:
        raise ValueError(f"tensors of the type {tensor.dtype} are not kept")
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return sealed.Tensor(names[tensor.dtype], tuple(tensor.shape), flat.numpy().tobytes())


def _read(path: Path) -> bytearray:
    try:
        return sealed.read_whole(path)
    except OSError as error:
        raise WeightsUnavailableError(f"cannot read the weights file {path}: {refusal(error)}") from error


def _tensors(data: bytearray) -> dict[str, Tensor]:
    import torch

    content, dtypes = sealed.unpack(data), _dtypes()
    return {
        name: torch.frombuffer(held.data, dtype=dtypes[held.dtype]).reshape(held.shape)
        if held.data
        else torch.empty(held.shape, dtype=dtypes[held.dtype])
        for name, held in content.tensors.items()
    }


def _dtypes() -> dict[str, torch.dtype]:
    """Return torch's types by the names that safetensors has for them."""
    import torch

    return {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U64": torch.uint64,
        "U32": torch.uint32,
        "U16": torch.uint16,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }


def unpickled(data: bytes | bytearray, device: str | torch.device = "cpu") -> Any:
    """Return what torch saved of tensors, numbers, texts, lists and dicts of them, in memory of about its size.

    Raises `ValueError` for anything else, and whatever else torch raises on broken bytes.
    """
    import torch

    file = io.BytesIO(data)
    if data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > len(data):  # torch packs nothing
            raise ValueError(f"it would unpack to {size:,} bytes")
        file.seek(0)
        _check_calls(io.BytesIO(torch._C.PyTorchFileReader(file).get_record("data.pkl")))  # as torch itself finds it
    else:
        for _ in range(_OLD_PICKLES):
            _check_calls(file)
    file.seek(0)
    with _old_kinds:
        return torch.load(file, map_location=device, weights_only=True)


def _check_calls(file: io.BytesIO) -> None:
    """Go through a pickle, and refuse one that names anything which no state dict needs; raises `ValueError`.

    Of what torch lets a pickle call, some take as much memory as they are told to, as `bytearray` does.
    """
    for code, said, _ in pickletools.genops(file):
        if code.name == "STACK_GLOBAL" or (code.name == "GLOBAL" and not _CALLS.fullmatch(str(said))):
            raise ValueError(f"it names {said}")


def fill(network: nn.Module, state: Mapping[str, Tensor], droppable: Collection[str], source: str) -> None:
    """Load `state` into a network whose classification layer is cut off, all of it or nothing.

    `droppable` names the tensors of the parts that were cut off; they may be there or not. Raises `WeightsError`
    that lists what is missing, unexpected or of another shape.
    """
    target = network.state_dict()
    # Counts of training steps; files from before they existed lack them, and eval mode does not use them.
    needed = [name for name in target if not name.endswith("num_batches_tracked")]
    complaints = {
        "missing": [name for name in needed if name not in state],
        "unexpected": [n for n in state if n not in target and n not in droppable and not n.startswith(TOP)],
        "of another shape": [n for n in needed if n in state and state[n].shape != target[n].shape],
    }
    if any(complaints.values()):
        said = "; ".join(f"{what}: {_listed(names)}" for what, names in complaints.items() if names)
        raise WeightsError(
            f"the weights in {source} do not fit this backbone ({said}): give the file that belongs to it"
        )
    target.update({name: state[name] for name in target if name in state})
    network.load_state_dict(target)  # with the versions of its layers, which some cannot do without


def _listed(names: list[str], most: int = 4) -> str:
    return ", ".join(one_line(name)[:80] for name in names[:most]) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )
