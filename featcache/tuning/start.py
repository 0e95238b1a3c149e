"""A linear head fitted on vectors, or vectors with labels, enter; the same classifier as one layer leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline

from featcache.heads import get
from featcache.heads.scaling import LINEAR, SCALINGS
from featcache.records import FloatArray
from featcache.tuning.blocks import Cut
from featcache.tuning.inputs import Inputs, Rows

BATCH = 32


def linear_layer(pipeline: Any) -> tuple[FloatArray, FloatArray]:
    """Return weights (K, d) and biases (K) whose softmax on a vector is what the pipeline predicts of it.

    The pipeline is a linear scaling, a turn onto principal axes, and a linear classifier with a temperature.
    """
    scaler, axes, head = (step for _, step in pipeline.steps)
    turned = head.coef_.astype(np.float64) @ axes.components_.astype(np.float64)
    weights = turned / scaler.scale_
    biases = head.intercept_ - turned @ (axes.mean_ + scaler.mean_ / scaler.scale_)
    return weights / head.temperature, biases / head.temperature


def fit_layer(X: FloatArray, codes: Rows) -> tuple[FloatArray, FloatArray]:
    """Return weights (K, d) and biases (K) of `logreg` with its default parameters, fitted on vectors (n, d)."""
    head = get("logreg")
    estimator = head.make(0, len(X)).set_params(**head.default)
    scaler = SCALINGS[LINEAR[0]].make()
    return linear_layer(make_pipeline(scaler, PCA(svd_solver="full"), estimator).fit(X, codes))


def vectors(cut: Cut, inputs: Inputs, device: torch.device) -> list[tuple[Rows, FloatArray]]:
    """Return what the network gives of the plain pictures, as rows and vectors (n, d), batch by batch."""
    network, every = cut.network.eval().to(device), np.arange(len(inputs))
    with torch.no_grad():
        parts = inputs.batches([every[at : at + BATCH] for at in range(0, len(every), BATCH)], 0)
        return [(rows, network(x.to(device)).flatten(1).float().cpu().numpy()) for rows, x in parts]
