"""Vectors made with less precision enter; what they lost beside those of the exact network leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from featcache.api.options import Options
from featcache.api.pipeline import compute
from featcache.backbones import Backbone
from featcache.errors import DatasetError, HeadError
from featcache.heads import get
from featcache.load import load
from featcache.records import Access, Features, PrecisionCheck, Probe, Progress
from featcache.splits import Plan, plan, unscored_text
from featcache.store import Cache, Row

SAMPLE = 1000
SEED = 0
HEAD = "logreg"


def price(
    cache: Cache,
    rows: Sequence[Row],
    backbone: Backbone,
    options: Options,
    progress: Progress | None,
    access: Access | None = None,
) -> PrecisionCheck:
    """Compare the vectors of a backbone, and a head trained on them, with those of its exact network.

    On all pictures where the cache has the exact vectors, else on a sample drawn with `SEED`, whose vectors are
    computed.
    """
    rows = [row for row in rows if row.key is not None]
    exact = replace(backbone, spec=backbone.spec.network)
    keys = [row.key for row in rows if row.key is not None]
    if len(rows) > SAMPLE and not cache.features(exact.spec).contains(keys).all():
        drawn = np.random.default_rng(SEED).choice(len(rows), SAMPLE, replace=False)
        rows = [rows[at] for at in sorted(drawn.tolist())]
    items = [row.item for row in rows]
    work, *_ = compute(cache, items, [exact], replace(options, rehash=False), progress, access)
    readable = {row.item.path for row in work.rows if row.key is not None}
    rows = [row for row in rows if row.item.path in readable]
    ours, theirs = (load(rows, cache.store(seen.spec.fingerprint)) for seen in (backbone, exact))
    cosines = _cosines(ours, theirs)
    made: Plan | None = None
    probes: list[Probe | None] = [None, None]
    note = None
    try:
        made = plan(theirs, SEED, {})
        probes = [_probe(features, made) for features in (ours, theirs)]
        if made.unscored:
            note = unscored_text(made.unscored, made.scored_name, len(np.unique(theirs.y[made.fitted])))
    except (DatasetError, HeadError) as error:
        note = str(error)
    return PrecisionCheck(
        pictures=len(rows),
        cosine_mean=float(cosines.mean()),
        cosine_least=float(cosines.min()),
        head=HEAD,
        seed=SEED,
        scored_split=made.scored_name if made else None,
        n_train=len(made.fitted) if made else 0,
        n_test=len(made.scored) if made else 0,
        probe=probes[0],
        exact_probe=probes[1],
        note=note,
    )


def _cosines(ours: Features, theirs: Features) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    one, other = ours.X.astype(np.float64), theirs.X.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    found: np.ndarray[tuple[int], np.dtype[np.float64]] = (one * other).sum(1) / np.maximum(lengths, 1e-300)
    return found


def _probe(features: Features, made: Plan) -> Probe:
    from featcache.evaluate import score
    from featcache.experiments.fitting import fit_head
    from featcache.experiments.prepared import prepare

    data = prepare(features, made)
    found = score(made.scored_name, data.truth, fit_head(get(HEAD), data, SEED).probabilities)
    return Probe(found.accuracy, found.accuracy_low, found.accuracy_high)
