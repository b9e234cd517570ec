"""What prompt learning has to beat: simple uses of the same frozen CLIP on the same photographs.

All work on cached unit features float32 (image, feature). Each offers ``scores(features)`` as logits
(image, class), which softmax turns into probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn

from gcpl_lab.data.episodes import cross_validation_folds
from gcpl_lab.lmpt.prompts import ContextPrompts
from gcpl_lab.models.clip import FrozenCLIP

ENSEMBLE_TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "a product photo of a {}",
    "a {} on a black background",
    "this is a {}",
)


class ZeroShotCLIP:
    """Cosine of image and class-name features, times CLIP's own scale.

    Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020
    """

    def __init__(self, clip: FrozenCLIP, class_names: Sequence[str], templates: Sequence[str] = ("a photo of a {}",)):
        """Encode each name in every template; several templates are averaged as unit features (ensembling)."""
        features = torch.stack([clip.encode_texts([t.format(name) for name in class_names]) for t in templates])
        self.text_features = F.normalize(features.mean(0), dim=-1).cpu()
        self.scale = clip.logit_scale

    def scores(self, features: Tensor) -> Tensor:
        """Logits (image, class)."""
        return self.scale * features @ self.text_features.T


class LinearProbe:
    """Logistic regression on image features, its strength chosen by cross-validated log-loss on the support set.

    It learns from every view of a photograph; all views of one are held out together.
    """

    STRENGTHS = (0.1, 1.0, 10.0, 100.0)

    def __init__(self, views: Tensor, labels: Tensor, seed: int = 0) -> None:
        """Fit on unit features (view, image, feature), as of photographs and mirror images, and class ids (image,)."""
        num_views, num_images = views.shape[:2]
        x, y = views.flatten(0, 1).numpy(), labels.repeat(num_views).numpy()
        model = LogisticRegression(max_iter=2000, C=10.0)
        shots = int(np.unique(labels.numpy(), return_counts=True)[1].min())
        if shots >= 2:
            start = np.arange(num_views)[:, None] * num_images
            folds = [
                tuple((start + part).ravel() for part in fold)
                for fold in cross_validation_folds(labels.numpy(), min(4, shots), seed)
            ]
            search = GridSearchCV(model, {"C": list(self.STRENGTHS)}, scoring="neg_log_loss", cv=folds)
            self._model = search.fit(x, y).best_estimator_
        else:
            self._model = model.fit(x, y)

    def scores(self, features: Tensor) -> Tensor:
        """Logits (image, class)."""
        values = np.atleast_2d(self._model.decision_function(features.numpy()))
        if len(self._model.classes_) == 2:  # scikit-learn gives one number for two classes
            values = np.stack([np.zeros(values.size), values.reshape(-1)], axis=1)
        return torch.from_numpy(values).float()


class NearestClassMean:
    """Cosine to the mean feature of each class."""

    def __init__(self, features: Tensor, labels: Tensor, scale: float) -> None:
        """Average unit features (image, feature) by class; ``scale`` is CLIP's, for probabilities."""
        means = torch.stack([features[labels == label].mean(0) for label in labels.unique()])
        self.means, self.scale = F.normalize(means, dim=-1), scale

    def scores(self, features: Tensor) -> Tensor:
        """Logits (image, class)."""
        return self.scale * features @ self.means.T


class CoOp:
    """Context vectors tuned with cross entropy on cached image features; an objective for the training loop.

    Source: Zhou et al. 2022, https://arxiv.org/abs/2109.01134
    """

    def __init__(self, clip: FrozenCLIP, prompts: ContextPrompts) -> None:
        self.clip, self.prompts = clip, prompts

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The context vectors alone."""
        return [self.prompts.context]

    def __call__(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Cross entropy of (features (image, feature), labels (image,))."""
        features, labels = batch
        return {"loss": F.cross_entropy(self._logits(features), labels)}

    def _logits(self, features: Tensor) -> Tensor:
        return self.clip.logit_scale * features @ self.clip.encode_prompts(*self.prompts()).cpu().T

    @torch.no_grad()
    def scores(self, features: Tensor) -> Tensor:
        """Logits (image, class)."""
        return self._logits(features)


class TipAdapter:
    """Zero-shot logits plus a vote of the support photographs by similarity; nothing is trained.

    The vote's weight α and sharpness β are chosen by leaving each support photograph out in turn.

    Source: Zhang et al. 2022, https://arxiv.org/abs/2207.09519
    """

    WEIGHTS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
    SHARPNESSES = (1.0, 2.0, 5.5, 10.0, 20.0, 40.0)

    def __init__(self, zero_shot: ZeroShotCLIP, features: Tensor, labels: Tensor) -> None:
        """Keep the support set: unit features (image, feature), class ids (image,)."""
        self.zero_shot = zero_shot
        self.keys = nn.Parameter(features.clone())
        self.values = F.one_hot(labels, len(zero_shot.text_features)).float()
        self.weight, self.sharpness = self._choose(features, labels)

    def _choose(self, features: Tensor, labels: Tensor) -> tuple[float, float]:
        """Weight and sharpness with the best accuracy where each support photograph is left out in turn."""
        cosines, base = features @ features.T, self.zero_shot.scores(features)

        def left_out_accuracy(weight: float, sharpness: float) -> float:
            votes = torch.exp(-sharpness * (1 - cosines)).fill_diagonal_(0)
            return float(((base + weight * votes @ self.values).argmax(1) == labels).float().mean())

        return max(self.settings(), key=lambda setting: left_out_accuracy(*setting))

    @classmethod
    def settings(cls) -> list[tuple[float, float]]:
        """Every (weight, sharpness) that is tried."""
        return [(weight, sharpness) for weight in cls.WEIGHTS for sharpness in cls.SHARPNESSES]

    def _logits(self, features: Tensor, weight: float, sharpness: float) -> Tensor:
        votes = torch.exp(-sharpness * (1 - features @ self.keys.T))
        return self.zero_shot.scores(features) + weight * votes @ self.values

    @torch.no_grad()
    def scores(self, features: Tensor) -> Tensor:
        """Logits (image, class)."""
        return self._logits(features, self.weight, self.sharpness)


class TipAdapterF(TipAdapter):
    """Tip-Adapter with trained keys, as the authors train them; an objective for the training loop.

    While the keys are trained, weight and sharpness are the authors' starting values. Those that it answers with are
    chosen afterwards: by the authors on a validation set, here by cross-validation on the support photographs
    (:meth:`held_out_right` of each fold, added up).

    Source: Zhang et al. 2022, https://arxiv.org/abs/2207.09519, and the authors' ``main.py``: AdamW with rate 1e-3 and
        epsilon 1e-4, 20 epochs of batches of 256, cosine schedule
    """

    START = (1.17, 1.0)
    """α and β during training, of the authors' configurations."""

    def _choose(self, features: Tensor, labels: Tensor) -> tuple[float, float]:
        return self.START

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The keys."""
        return [self.keys]

    def __call__(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Cross entropy of (features (image, feature), labels (image,))."""
        features, labels = batch
        return {"loss": F.cross_entropy(self._logits(features, *self.START), labels)}

    @torch.no_grad()
    def held_out_right(self, features: Tensor, labels: Tensor) -> np.ndarray:
        """How many photographs that the keys have not seen each of :meth:`settings` tells right, int64 (setting,)."""
        found = [self._logits(features, *setting).argmax(1) == labels for setting in self.settings()]
        return np.array([int(right.sum()) for right in found])


def feature_batches(
    views: Tensor, labels: Tensor, batch_size: int, seed: int
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches of cached features for the training loop, each from its step's number.

    Args:
        views: (view, image, feature): features of the photographs and their mirror images.
        labels: (image,).
        batch_size: Photographs a batch, without repetition.
        seed: Of the draws.
    """

    def batch_at(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, 17, step]).generate_state(1)[0]))
        chosen = torch.randperm(len(labels), generator=generator)[:batch_size]
        view = torch.randint(len(views), (len(chosen),), generator=generator)
        return views[view, chosen], labels[chosen]

    return batch_at
