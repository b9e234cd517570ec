"""The two plainest uses of CLIP's image features: nearest class mean and a linear probe."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from torch import Tensor

from gcpl_lab.baselines.base import FeatureSupport, exemplar_folds, register_baseline


@register_baseline("nearest_class_mean", title="Nearest class mean")
class NearestClassMean:
    """Cosine to the mean feature of each class, of images as they are, times CLIP's scale for probabilities."""

    def __init__(self, support: FeatureSupport) -> None:
        features, labels = support.features[0], support.labels
        means = torch.stack([features[labels == label].mean(0) for label in labels.unique()])
        self.means, self.scale = F.normalize(means, dim=-1), support.clip.logit_scale

    def scores(self, features: Tensor) -> Tensor:
        return self.scale * features @ self.means.T


PLAIN_STRENGTH = 10.0
"""Where nothing can be held out."""


class LinearProbe:
    """Logistic regression on every view of an image, its strength chosen by cross-validated log-loss.

    All views of one image are held out together. Where the best strength lies at an end, the search goes on from there.

    Args:
        views: Unit features (view, image, feature), as of images and mirror images.
        labels: Class ids (image,).
    """

    STRENGTHS = (0.1, 1.0, 10.0, 100.0)
    WIDEST = (1e-4, 1e6)

    def __init__(self, views: Tensor, labels: Tensor, seed: int = 0) -> None:
        x, y, folds = flatten_views(views, labels, seed)
        self._model = LogisticRegression(max_iter=2000, C=_choose_strength(x, y, folds)).fit(x, y)

    def scores(self, features: Tensor) -> Tensor:
        values = np.atleast_2d(self._model.decision_function(features.numpy()))
        if len(self._model.classes_) == 2:  # scikit-learn gives one number for two classes
            values = np.stack([np.zeros(values.size), values.reshape(-1)], axis=1)
        return torch.from_numpy(values).float()


Folds = list[tuple[np.ndarray, ...]]


def flatten_views(views: Tensor, labels: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray, Folds]:
    """Every view (view, image, feature) as an example of its own, its label, and folds that hold out whole images."""
    num_views, num_images = views.shape[:2]
    start = np.arange(num_views)[:, None] * num_images
    folds = [tuple((start + part.numpy()).ravel() for part in fold) for fold in exemplar_folds(labels, seed)]
    return views.flatten(0, 1).numpy(), labels.repeat(num_views).numpy(), folds


def held_out_loss(x: np.ndarray, y: np.ndarray, folds: Folds, strength: float) -> float:
    """Log-loss of a logistic regression on what each fold holds out, the mean over folds."""
    model = LogisticRegression(max_iter=2000, C=strength)
    return -float(cross_val_score(model, x, y, cv=folds, scoring="neg_log_loss").mean())


def _choose_strength(x: np.ndarray, y: np.ndarray, folds: Folds) -> float:
    if not folds:
        return PLAIN_STRENGTH
    losses = {strength: held_out_loss(x, y, folds, strength) for strength in LinearProbe.STRENGTHS}
    while (best := min(losses, key=losses.__getitem__)) in (min(losses), max(losses)):
        further = best * (10 if best == max(losses) else 0.1)
        if not LinearProbe.WIDEST[0] <= further <= LinearProbe.WIDEST[1]:
            break
        losses[further] = held_out_loss(x, y, folds, further)
    return best


@register_baseline("linear_probe", title="Linear probe")
def fit_linear_probe(support: FeatureSupport) -> LinearProbe:
    """On every view."""
    return LinearProbe(support.features, support.labels, support.seed)
