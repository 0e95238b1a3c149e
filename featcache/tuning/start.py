"""A linear head fitted on prepared vectors enters; the same classifier as one layer on raw vectors leaves."""

from __future__ import annotations

from typing import Any

import numpy as np

from featcache.records import FloatArray


def linear_layer(pipeline: Any) -> tuple[FloatArray, FloatArray]:
    """Return weights (K, d) and biases (K) whose softmax on a vector is what the pipeline predicts of it.

    The pipeline is a standardisation, a turn onto principal axes, and a linear classifier with a temperature.
    """
    scaler, axes, head = (step for _, step in pipeline.steps)
    turned = head.coef_.astype(np.float64) @ axes.components_.astype(np.float64)
    weights = turned / scaler.scale_
    biases = head.intercept_ - turned @ (axes.mean_ + scaler.mean_ / scaler.scale_)
    return weights / head.temperature, biases / head.temperature
