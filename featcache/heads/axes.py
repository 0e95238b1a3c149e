"""Fitted principal axes enter, and what a file keeps of them leaves; that enters, and the axes leave."""

from __future__ import annotations

from sklearn.decomposition import PCA

from featcache.heads.keeping import Kept, Parts


def keep(axes: PCA) -> Kept:
    """Return what turning vectors onto the axes needs; raises `ValueError` for axes that are whitened too."""
    if axes.whiten:
        raise ValueError("axes that divide by their deviations are not kept")
    return Kept({}, {"components_": axes.components_, "mean_": axes.mean_})


def restored(parts: Parts) -> PCA:
    """Return the axes that `keep` was asked of; raises `ModelError`."""
    made = PCA()
    made.components_ = parts.floats("components_", (None, parts.dim))
    made.mean_ = parts.floats("mean_", (parts.dim,))
    made.n_components_, made.n_features_in_ = len(made.components_), parts.dim
    return made
