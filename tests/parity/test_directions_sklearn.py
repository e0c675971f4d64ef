"""Directions equal scikit-learn's estimators on the same states."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.unit.directions.states import two_classes

from isthmus.carrying import cosine
from isthmus.directions import METHODS, fit_probe


def test_pca_equals_scikit_learn_on_differences_in_both_orders():
    positive, negative, _ = two_classes(n=50, n_positions=2, gap=1.0)
    vectors = METHODS["pca"](positive, negative, pooled=False)
    for position in range(2):
        differences = (positive - negative)[:, position].double().numpy()
        component = PCA(1).fit(np.vstack([differences, -differences])).components_[0]
        alike = cosine(vectors[position], torch.from_numpy(component))
        assert abs(alike.item()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("gap", [0.5, 4.0])
def test_a_probe_decides_as_scikit_learns_pipeline_does(gap: float):
    positive, negative, _ = two_classes(n=100, n_positions=1, gap=gap)
    positive, negative = positive[:, 0].double(), negative[:, 0].double()
    states, labels = torch.cat([positive, negative]).numpy(), [1] * 100 + [0] * 100
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    expected = pipeline.fit(states, labels).decision_function(states)
    probe = fit_probe(positive, negative)
    scores = probe.scores(torch.from_numpy(states)).double().numpy()
    slope = np.linalg.norm(pipeline[-1].coef_[0] / pipeline[0].scale_)
    np.testing.assert_allclose(scores * slope, expected, rtol=1e-4, atol=1e-4)
    auroc = probe.auroc(positive, negative)
    assert auroc == pytest.approx(roc_auc_score(labels, expected), abs=1e-3)


def test_the_mean_difference_equals_numpy_in_float64():
    positive, negative, _ = (1e4 * one.double() for one in two_classes(n=1000, gap=1e-3))
    expected = positive.numpy().mean(0) - negative.numpy().mean(0)
    vectors = METHODS["mean_difference"](positive, negative, pooled=False)
    np.testing.assert_allclose(vectors.numpy(), expected, rtol=1e-9)
