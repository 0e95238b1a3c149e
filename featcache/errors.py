"""Nothing enters; every failure a user can meet leaves, each one also a natural builtin."""

import errno


class FeatcacheError(Exception):
    """The root of all failures that end in one clear line: what, which value, what to do next."""


class UsageError(FeatcacheError, ValueError):
    """Values that are out of range or cannot be asked for together; on the command line wrong usage."""


class DatasetError(FeatcacheError, ValueError):
    """A folder, manifest or set of labels that cannot be used as asked."""


class DatasetNotFoundError(DatasetError, FileNotFoundError):
    """A folder, manifest or picture that is not there."""


class PictureError(FeatcacheError, ValueError):
    """One picture that cannot be read or decoded; counted, never fatal to a run."""


class BackboneError(FeatcacheError, ValueError):
    """A backbone that is unknown or cannot be built as asked."""


class WeightsError(BackboneError):
    """Weights that do not fit the network, or are not what their name promises."""


class WeightsUnavailableError(WeightsError, OSError):
    """Weights that are not on this computer and could not be downloaded."""


class DeviceError(FeatcacheError, ValueError):
    """A device that was asked for by name and is not there."""


class EngineError(FeatcacheError, RuntimeError):
    """An engine that cannot run this backbone here, or would not give the same vectors."""


class EngineMemoryError(EngineError, MemoryError):
    """A batch that does not fit into the memory of the device."""


class ForkedError(FeatcacheError, RuntimeError):
    """A process that was forked in a way that nothing can be computed in it."""


class CacheError(FeatcacheError, RuntimeError):
    """A cache that cannot be opened or read as it is."""


class CatalogError(CacheError):
    """A catalog that is damaged; it can be rebuilt from the runs, the vectors and the pictures."""


class CacheVersionError(CacheError):
    """A cache in a format this version does not read."""


class CacheWriteError(CacheError, OSError):
    """Bytes that could not be put on the disk; nothing half-written was published."""


class TooLargeValuesError(CacheError):
    """Values beyond what the type that they are to be kept in can hold."""


class MissingFeaturesError(CacheError, LookupError):
    """Vectors that were asked for and are not in the store."""


class HeadError(FeatcacheError, ValueError):
    """A head that is unknown, or that cannot be trained on these vectors."""


class TrainingError(FeatcacheError, ValueError):
    """A fine-tuning that cannot be done as asked, or that came to nothing."""


class RunNotFoundError(FeatcacheError, LookupError):
    """A run that the cache does not hold, or that has nothing of what was asked for."""


class OutputError(FeatcacheError, OSError):
    """A file the user named for results that cannot be written."""


class ExchangeError(FeatcacheError, ValueError):
    """A file of exported vectors that cannot be written as asked, or is not what it says."""


class ModelError(FeatcacheError, ValueError):
    """A model file that is missing, not trusted, broken or made for other features."""


def explained(error: BaseException) -> str | None:
    """Say in one line what to do about a failure of the system that no command has words for; `None` of others."""
    text = str(error)
    number = getattr(error, "errno", None)
    is_panic = type(error).__module__ == _PANICS
    lacks_memory = is_panic or any(sign in text.lower() for sign in _NO_MEMORY)
    if number in _NO_DESCRIPTORS or (not isinstance(error, OSError) and _DESCRIPTORS in text.lower()):
        return f"{_DESCRIPTORS} ({text}): raise the limit (`ulimit -n 1024`) and run the same command again"
    if isinstance(error, MemoryError) or number == errno.ENOMEM or (lacks_memory and not isinstance(error, OSError)):
        return (
            f"out of memory ({text or 'no more can be had'}): raise the limit if there is one (`ulimit -v`), close "
            "other programs, or use a larger computer, then run the same command again"
        )
    if isinstance(error, OSError):
        return f"the system refuses ({text}): mend that and run the same command again"
    if isinstance(error, ImportError):
        return f"a library cannot be loaded ({text}): install featcache again, into a fresh environment"
    return None


def refusal(error: OSError) -> str:
    """Return in words why the system refuses, with what to do where nothing is wrong with the file itself."""
    said = error.strerror or str(error)
    return f"{_DESCRIPTORS}: raise the limit (`ulimit -n 1024`)" if error.errno in _NO_DESCRIPTORS else said


_DESCRIPTORS = "too many open files"
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

_NO_MEMORY = ("failed to map segment", "allocate memory", "unable to allocate", "bad_alloc", "start new thread")
"""What dynamic linker, torch, numpy, C++ and Python say of it in errors of other kinds."""

_PANICS = "pyo3_runtime"
"""Where libraries in Rust, as safetensors, say that they give up, which sound ones do where they get no memory."""


def one_line(text: str) -> str:
    """Return text that may hold names from the disk as one line, control characters and line ends escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
