"""A fitted head enters and a model file leaves; a model file enters and the head leaves, if it is whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from featcache import sealed
from featcache.backbones import finetuned, resolve
from featcache.errors import BackboneError, DatasetError, ModelError
from featcache.records import DRAFT, ORIGINAL, PRECISIONS, VIEWS, FeatureSpec
from featcache.store import Cache
from featcache.texts import LONGEST_LABEL, flaw, flaw_of_names, shortened, spelled_out

FORMAT = "featcache-model"
FORMAT_VERSION = 2
"""Version 1 is pickled, and was written with joblib."""

SUFFIX = sealed.SUFFIX
OLD_SUFFIX = ".joblib"
_PICKLED = b"\x80"
"""What every pickle that Python 3 made begins with."""

_SAID: dict[str, Any] = {
    "format": str,
    "format_version": int,
    "head": str,
    "classes": list,
    "steps": dict,
    "spec": str,
    "weights_file": (str, type(None)),
    "scores": dict,
    "versions": dict,
}

_SHARES = ("accuracy", "accuracy_low", "accuracy_high")
_COUNTS = ("n", "n_test", "scored_classes", "seed")
_WORDS = ("head", "split", "scored_split")


MOST_SAID = 500
"""Characters of what is wrong with a file: it may repeat what is in it."""


def versions() -> dict[str, str]:
    """Return the versions of the packages that can change a result."""
    return {name: version(name) for name in ("featcache", "scikit-learn", "numpy", "torch", "timm", "pillow")}


@dataclass(frozen=True)
class Model:
    """A fitted head with all that predicting needs: class names, the features it reads, and its scores."""

    estimator: Any
    classes: tuple[str, ...]
    spec: FeatureSpec
    weights_file: str | None
    scores: Mapping[str, Any]
    versions: dict[str, str] = field(default_factory=versions)

    def check_dim(self, path: Path, dim: int) -> None:
        """Raise `ModelError` unless the model at `path` reads vectors of this length."""
        if self.estimator.n_features_in_ != dim:
            raise ModelError(
                f"{path} reads vectors of {self.estimator.n_features_in_:,} values, and {self.spec.backbone} gives "
                f"{dim:,}: fit it again"
            )


def check_labels(root: str, labels: Iterable[str]) -> None:
    """Raise `DatasetError` for classes that the file of a model cannot hold; the empty label is none."""
    if (said := flaw_of_names([label for label in labels if label])) is not None:
        raise DatasetError(f"a class of {root} can be in no model, {said}: rename it and extract again")


def save_model(cache: Cache, name: str, head: str, model: Model) -> str:
    """Write the model into the cache as a file that holds nothing but data, and return its sha256 (hex)."""
    from featcache.heads.pipelines import keep

    steps, arrays = keep(head, model.estimator)
    said = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "head": head,
        "classes": model.classes,
        "steps": steps,
        "spec": model.spec.to_json(),
        "weights_file": model.weights_file,
        "scores": sealed.without_infinite(spelled_out(model.scores)),
        "versions": model.versions,
    }
    data = sealed.pack({name: sealed.of_array(array) for name, array in arrays.items()}, said)
    cache.put(name, data)
    return hashlib.sha256(data).hexdigest()


def said_of_link(link: Path) -> str:
    """Return what to say of a link in the folder of the models."""
    return (
        f"{link} is a link to {link.readlink()}, and models in a cache are files: put the model in its place, or fit "
        "again"
    )


def load_model(cache: Cache, path: Path, trust: bool) -> Model:
    """Read a model file, once; raises `ModelError` for one that is damaged, or is not what its run made.

    One of version 1 is unpickled, with `trust` only; nothing else runs code.
    """
    try:
        if (link := cache.linked_model(path)) is not None:
            raise ModelError(said_of_link(link))
        path.stat()  # which says so where links lead in a circle
        data = sealed.read_whole(path.resolve(), links=False)  # one that was put there since is not followed, either
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    if path.suffix != SUFFIX and not sealed.looks_like_one(data):
        if path.suffix != OLD_SUFFIX and data[:1] != _PICKLED:
            raise ModelError(f"{path} is no model: `featcache fit` makes them, and says where they lie")
        if not trust:
            raise ModelError(
                f"{path} is a model of the old format, and opening one can run any code: fit it again, or add --trust "
                "if you trust all who could write it"
            )
        from featcache.api.pickled import unpickle

        return unpickle(path, data)
    try:
        content = sealed.unpack(data)
        run = cache.maker(path)
        if run is not None and run.model_sha256 != digest:
            raise ModelError(f"it is not the file that run {run.id} made, but another: put that back, or fit again")
        if content.known is not None and content.known.get("format") == FORMAT:
            return _restored(content)
        return _finetuned(path, finetuned.parse(data))
    except BackboneError as error:
        raise ModelError(shortened(str(error), MOST_SAID)) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be used as a model: {shortened(str(error), MOST_SAID)}") from error


def _restored(content: sealed.Content) -> Model:
    """Return the model in a file of version 2; raises `ValueError`."""
    from featcache.heads.pipelines import restore

    said = content.known or {}
    if not content.is_sealed:
        raise ModelError("it has lost its seal")
    if said.get("format_version") != FORMAT_VERSION:
        raise ModelError("this featcache does not read its format: fit it again, or use the featcache that wrote it")
    if said.keys() != _SAID.keys():
        raise ModelError(f"it does not say {', '.join(_SAID)}, and nothing else")
    for name, kind in _SAID.items():
        if not isinstance(said[name], kind):
            raise ModelError(f"its {name} is {said[name]!r:.80}")
    classes, spec = tuple(said["classes"]), FeatureSpec.from_json(said["spec"])
    if (flaw_said := flaw_of_names(classes) if classes else "there are none") is not None:
        raise ModelError(f"its classes cannot be used: {flaw_said}")
    _check_spec(spec)
    _check_scores(said["scores"])
    arrays = {name: tensor.array() for name, tensor in content.tensors.items()}
    estimator = restore(said["head"], said["steps"], arrays, len(classes))
    return Model(estimator, classes, spec, said["weights_file"], said["scores"], said["versions"])


def _check_spec(spec: FeatureSpec) -> None:
    for what, value, known in (
        ("view", spec.view, _views()),
        ("precision", spec.precision, PRECISIONS),
        ("decoding", spec.decoding, (None, DRAFT)),
    ):
        if value not in known:
            raise ModelError(f"the {what} of its features is {value!r:.80}")


def _check_scores(scores: Mapping[str, Any]) -> None:
    """Raise `ModelError` where what is used of the scores is not of its kind."""
    wrong = [name for name in _SHARES if not _is_share(scores.get(name))]
    wrong += [name for name in _COUNTS if name in scores and not _is_count(scores[name])]
    wrong += [name for name in _WORDS if name in scores and not _is_word(scores[name])]
    if wrong:
        raise ModelError(f"the {wrong[0]} among its scores is {scores.get(wrong[0])!r:.80}")
    if not {"n", "n_test"} & scores.keys() or not {"split", "scored_split"} & scores.keys():
        raise ModelError("its scores do not say on how many pictures of which split")
    views = scores.get("test_views", [])
    if not isinstance(views, list) or not all(view in _views() for view in views) or len(set(views)) < len(views):
        raise ModelError(f"the views that it looks at are {views!r:.80}")


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and -1e-6 <= value <= 1 + 1e-6  # an interval is rounded


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and flaw(value, LONGEST_LABEL) is None


def _views() -> list[str]:
    return [ORIGINAL, *(name for names in VIEWS.values() for name in names)]


def _finetuned(path: Path, known: finetuned.Finetuned) -> Model:
    """Return a fine-tuned network as a backbone and a linear head; raises `BackboneError`."""
    from featcache.heads.keeping import Parts
    from featcache.heads.logreg import LogisticRegression

    _check_spec(known.spec)
    _check_scores(known.scores)
    backbone = resolve(f"{finetuned.PREFIX}{known.run}", path).making(known.spec)
    if backbone.spec.weights_sha256 != known.sha256:
        raise ModelError(f"{path} has changed while it was read: run the same command again")
    weight, bias = known.top
    values = dict(LogisticRegression().get_params())
    arrays = {"coef_": weight, "intercept_": bias}
    head = LogisticRegression.restored(Parts(values, arrays, len(known.classes), weight.shape[1]))
    return Model(head, known.classes, backbone.spec, str(path.absolute()), known.scores, known.versions)
