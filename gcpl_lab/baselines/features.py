"""The two plainest uses of CLIP's image features: nearest class mean and a linear probe."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from torch import Tensor

from gcpl_lab.baselines.base import FeatureSupport, register_baseline
from gcpl_lab.data.episodes import cross_validation_folds


@register_baseline("nearest_class_mean", title="Nearest class mean")
class NearestClassMean:
    """Cosine to the mean feature of each class, of images as they are, times CLIP's scale for probabilities."""

    def __init__(self, support: FeatureSupport) -> None:
        features, labels = support.features[0], support.labels
        means = torch.stack([features[labels == label].mean(0) for label in labels.unique()])
        self.means, self.scale = F.normalize(means, dim=-1), support.clip.logit_scale

    def scores(self, features: Tensor) -> Tensor:
        return self.scale * features @ self.means.T


class LinearProbe:
    """Logistic regression on every view of an image, its strength chosen by cross-validated log-loss.

    All views of one image are held out together.

    Args:
        views: Unit features (view, image, feature), as of images and mirror images.
        labels: Class ids (image,).
    """

    STRENGTHS = (0.1, 1.0, 10.0, 100.0)

    def __init__(self, views: Tensor, labels: Tensor, seed: int = 0) -> None:
        num_views, num_images = views.shape[:2]
        x, y = views.flatten(0, 1).numpy(), labels.repeat(num_views).numpy()
        model = LogisticRegression(max_iter=2000, C=10.0)
        shots = int(np.unique(labels.numpy(), return_counts=True)[1].min())
        if shots == 1:
            self._model = model.fit(x, y)
            return
        start = np.arange(num_views)[:, None] * num_images
        image_folds = cross_validation_folds(labels.numpy(), min(4, shots), seed)
        folds = [tuple((start + part).ravel() for part in fold) for fold in image_folds]
        search = GridSearchCV(model, {"C": list(self.STRENGTHS)}, scoring="neg_log_loss", cv=folds)
        self._model = search.fit(x, y).best_estimator_

    def scores(self, features: Tensor) -> Tensor:
        values = np.atleast_2d(self._model.decision_function(features.numpy()))
        if len(self._model.classes_) == 2:  # scikit-learn gives one number for two classes
            values = np.stack([np.zeros(values.size), values.reshape(-1)], axis=1)
        return torch.from_numpy(values).float()


@register_baseline("linear_probe", title="Linear probe")
def fit_linear_probe(support: FeatureSupport) -> LinearProbe:
    """On every view."""
    return LinearProbe(support.features, support.labels, support.seed)
