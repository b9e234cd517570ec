"""LMPT: class prompts for pictures with several labels, most of them rare, tuned with captions beside labels.

    loss = mix · classification(logits, targets) + (1 − mix) · embedding loss(captions, prompts)

The towers are frozen, so image and caption features are computed once; a step runs the text tower on the
class prompts alone.

Source: Xia et al. 2024, https://arxiv.org/abs/2305.04536
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcpl_lab.data.multilabel import CAPTION_SEPARATOR
from gcpl_lab.evaluation.calibration import fit_sigmoid
from gcpl_lab.fast.cpu_linear import without_autocast
from gcpl_lab.lmpt.losses import (
    asymmetric_loss,
    binary_cross_entropy,
    class_balanced_loss,
    distribution_balanced_loss,
    embedding_margins_and_weights,
    focal_loss,
    weighted_embedding_loss,
)
from gcpl_lab.lmpt.prompts import ContextPrompts
from gcpl_lab.models.clip import FrozenCLIP

Classification = Literal["distribution_balanced", "binary_cross_entropy", "focal", "class_balanced", "asymmetric"]
Reading = Literal["pooled", "token"]
ContrastReduction = Literal["mean", "weighted"]
PositionHinge = Literal["each", "sum"]
Scale = Literal["learned", "clip"]

CLASSIFICATIONS = ("distribution_balanced", "binary_cross_entropy", "focal", "class_balanced", "asymmetric")


class Batch(NamedTuple):
    """Cached pictures of one step.

    Attributes:
        features: Unit image features (image, feature).
        targets: (image, class), 0 or 1.
        captions: What :func:`encode_captions` made of each image's captions.
        has_caption: bool (image,): images without one have no part in the embedding loss.
    """

    features: Tensor
    targets: Tensor
    captions: Tensor
    has_caption: Tensor


@torch.no_grad()
def encode_captions(
    clip: FrozenCLIP, captions: Sequence[str | None], reading: Reading = "pooled", batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Encode the captions of every image once.

    Several captions of an image (joined by ``CAPTION_SEPARATOR``) become the mean of their unit vectors, made
    unit again. A caption longer than the context is cut where the tokenizer cuts it.

    Args:
        clip: The frozen CLIP.
        captions: One text an image, or None.
        reading: ``"pooled"``: features of the text tower; ``"token"``: rows of the token embedding table,
            position by position from the start token on, as the authors compare them.
        batch_size: Captions a pass.

    Returns:
        float32 (image, feature) or (image, token, dim), zeros where there is no caption, and bool (image,):
        where there is one.
    """
    parts = [[part for part in (caption or "").split(CAPTION_SEPARATOR) if part.strip()] for caption in captions]
    unique = sorted({part for texts in parts for part in texts})
    place = {text: index for index, text in enumerate(unique)}
    encoded = [_encode(clip, unique[i : i + batch_size], reading) for i in range(0, len(unique), batch_size)]
    present = torch.tensor([bool(texts) for texts in parts], dtype=torch.bool)
    if not encoded:
        return torch.zeros(len(parts), *_encode(clip, ["a"], reading).shape[1:]), present
    table = torch.cat(encoded)
    rows = torch.zeros(len(parts), *table.shape[1:])
    for index, texts in enumerate(parts):
        if texts:
            rows[index] = F.normalize(table[[place[text] for text in texts]].mean(dim=0), dim=-1)
    return rows, present


def _encode(clip: FrozenCLIP, texts: Sequence[str], reading: Reading) -> Tensor:
    if reading == "pooled":
        return clip.encode_texts(texts).cpu()
    ids = clip.tokenizer(list(texts)).to(clip.device)
    return F.normalize(clip.embedding_table[ids].float(), dim=-1).cpu()


class CachedBatches:
    """Batches for the training loop, each from its step's number alone: shuffled epochs, a random view an image.

    With the views identity and mirror image this is the published augmentation, without an image tower.
    """

    def __init__(
        self,
        views: Tensor,
        targets: Tensor,
        captions: Tensor,
        has_caption: Tensor,
        batch_size: int,
        seed: int,
        encode: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """Keep what is cached.

        Args:
            views: (view, image, feature), unit features.
            targets: (image, class), 0 or 1.
            captions: See :func:`encode_captions`.
            has_caption: bool (image,).
            batch_size: Images a step; an epoch's last batch holds what is left.
            seed: Of order and views.
            encode: Takes the place of the cached features: those of some images, int64 (image,), each in a view of its
                own, int64 (image,), computed anew.
        """
        self.views, self.targets, self.captions, self.has_caption = views, targets, captions, has_caption
        self._rows = views.flatten(0, 1)
        self.batch_size, self.seed, self._encode = batch_size, seed, encode
        self._latest: tuple[int, Tensor, Tensor] | None = None

    def subset(self, indices: np.ndarray) -> CachedBatches:
        """Batches of some of the images, int64 (image,), alone."""
        chosen = torch.from_numpy(indices)
        encode = self._encode
        return CachedBatches(
            self.views[:, chosen],
            self.targets[chosen],
            self.captions[chosen],
            self.has_caption[chosen],
            self.batch_size,
            self.seed,
            encode and (lambda images, views: encode(chosen[images], views)),
        )

    @property
    def steps_an_epoch(self) -> int:
        """Batches in which every image is seen once."""
        return math.ceil(len(self.targets) / self.batch_size)

    def __call__(self, step: int) -> Batch:
        """The batch of a step (from 0)."""
        epoch, place = divmod(step, self.steps_an_epoch)
        chosen = slice(place * self.batch_size, (place + 1) * self.batch_size)
        images, rows = (drawn[chosen] for drawn in self._draw(epoch))
        if self._encode is not None:
            features = self._encode(images, rows // len(self.targets))
        else:
            features = self._rows.index_select(0, rows)  # indices in brackets would take three times as long
        return Batch(
            features, *(kept.index_select(0, images) for kept in (self.targets, self.captions, self.has_caption))
        )

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Images in their order, and the row of the view that each is seen in, int64 (image,); the latest are kept."""
        if self._latest is None or self._latest[0] != epoch:
            state = np.random.SeedSequence([self.seed, 23, epoch]).generate_state(1)
            generator = torch.Generator().manual_seed(int(state[0]))
            order = torch.randperm(len(self.targets), generator=generator)
            view = torch.randint(len(self.views), (len(order),), generator=generator)
            self._latest = epoch, order, view * len(order) + order
        return self._latest[1:]


class LMPT:
    """The objective: a classification loss on labels and an embedding loss on captions, mixed.

    With ``mix=1`` captions play no part, and what remains is CoOp with a multi-label loss.

    Two readings of the embedding loss. ``"pooled"``: cosine of the encoded caption and the encoded prompt.
    ``"token"``, as in the authors' code: input embeddings, caption position p against prompt position m + p, where
    m is ``token_offset``. Position 0 holds the start token in both. With the class name at the end, prompt positions
    1 to M hold the contexts: captions give no gradient to the first m − 1 of them, to vector m one that is the same
    for every caption (it meets the start token), and to vectors m + 1 to M one that depends on captions' words. The
    authors' command has m = 2 and M = 16, so 15 of 16 vectors hear captions and 14 of them their words. With m = M,
    the default of their program (4 and 4), words meet frozen tokens only, and no gradient depends on what a caption
    says.

    What else the authors' code does otherwise: its sign is the other one, see
    :func:`~gcpl_lab.lmpt.losses.class_specific_embedding_loss`; it compares all positions of the text encoder, here
    those of the longest prompt, behind which all is frozen; γ of its class weights is 2, and it takes both weights and
    margins from a softmax of the class counts, in a line that PyTorch refuses (a sum over the third of two
    dimensions); its SGD has a weight decay of 1e-4, it lowers the rate where the mAP on the test set stands still,
    and keeps the checkpoint that is best there.

    Attributes:
        prompts: Their context vectors are trained.
        log_scale, bias: Of the logits scale · cosine + bias; trained too where ``scale="learned"``.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        prompts: ContextPrompts,
        *,
        class_counts: Sequence[int] | np.ndarray,
        num_images: int,
        mix: float = 0.5,
        classification: Classification = "distribution_balanced",
        reading: Reading = "pooled",
        token_offset: int | None = 2,
        position_hinge: PositionHinge = "each",
        margin: float = 0.2,
        reweight_gamma: float = 1.0,
        class_aware_margin: bool = True,
        reweight: bool = True,
        contrast_reduction: ContrastReduction = "mean",
        negative_scale: float = 5.0,
        mu: float = 0.3,
        rebalance: bool = True,
        negative_tolerant: bool = True,
        focal: bool = True,
        scale: Scale = "learned",
    ) -> None:
        """Take frozen towers and the prompts to train.

        Args:
            clip: Encodes the prompts.
            prompts: Class-specific or unified contexts.
            class_counts: n_i ≥ 1, training images with each class.
            num_images: N, training images.
            mix: λ from 0 (captions alone) to 1 (labels alone).
            classification: Which loss on the logits.
            reading: What captions and prompts are compared by, see the class.
            token_offset: m ≥ 0, positions of the prompt that the token-wise reading skips before the captions' first;
                None: as many as there are context vectors.
            position_hinge: ``"each"``: in the token-wise reading every position is a comparison with a margin of its
                own; ``"sum"``, as published: the distances of all positions are summed up before the margin.
            margin: Of the embedding loss, before n_i^(−1/4).
            reweight_gamma: γ of its class weights.
            class_aware_margin: False: every class has the same margin.
            reweight: False: every class weighs the same.
            contrast_reduction: ``"mean"`` over images and classes as the authors have it; their class weights
                sum to one, so that is the weighted average divided by the number of classes.
                ``"weighted"``: that weighted average.
            negative_scale, mu: λ_neg and μ of the distribution-balanced loss.
            rebalance, negative_tolerant, focal: Its three parts.
            scale: ``"learned"``: scale and bias of the logits are trained, from the values of
                :meth:`start_scale`; ``"clip"``: CLIP's own scale and no bias, as published.

        Raises:
            ValueError: A setting is none of those listed, or mix or token_offset is outside.
        """
        for name, value, known in (
            ("classification", classification, CLASSIFICATIONS),
            ("reading", reading, ("pooled", "token")),
            ("contrast_reduction", contrast_reduction, ("mean", "weighted")),
            ("position_hinge", position_hinge, ("each", "sum")),
            ("scale", scale, ("learned", "clip")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
        if not 0 <= mix <= 1:
            raise ValueError(f"mix is {mix}; expected 0 (captions alone) to 1 (labels alone)")
        num_context = prompts.context.shape[1]
        self.token_offset = num_context if token_offset is None else token_offset
        _check_offset(self.token_offset, prompts.get_buffer("ids").shape[1])
        self.clip, self.prompts = clip, prompts
        self.class_counts = torch.as_tensor(np.asarray(class_counts), dtype=torch.float32)
        self.num_images = num_images
        self.mix, self.classification, self.reading, self.scale = mix, classification, reading, scale
        self.contrast_reduction, self.position_hinge = contrast_reduction, position_hinge
        self._balanced: dict[str, Any] = {
            "negative_scale": negative_scale,
            "mu": mu,
            "rebalance": rebalance,
            "negative_tolerant": negative_tolerant,
            "focal": focal,
        }
        self._tower = clip.prompt_tower(prompts.get_buffer("ids"))
        device = prompts.context.device
        self._margins, self._weights = embedding_margins_and_weights(
            self.class_counts.to(device), margin, reweight_gamma if reweight else 0.0, class_aware_margin
        )
        self.log_scale, self.bias = (
            nn.Parameter(torch.tensor(number, device=device), requires_grad=scale == "learned")
            for number in (math.log(clip.logit_scale), 0.0)
        )

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The context vectors; with a learned scale, two numbers more."""
        return [self.prompts.context, *([self.log_scale, self.bias] if self.scale == "learned" else [])]

    @torch.no_grad()
    def start_scale(self, features: Tensor, targets: Tensor) -> None:
        """Set a learned scale and bias to those that fit the starting prompts' cosines to the training labels.

        CLIP's own scale and no bias put every logit far above 0: the first steps would be spent on a bias.

        Args:
            features: (image, feature), unit, of training images.
            targets: (image, class), 0 or 1.
        """
        if self.scale == "learned":
            cosines = _cosines(features.to(self.bias.device), self.text_features())
            scale, bias = fit_sigmoid(cosines.cpu().numpy(), targets.cpu().numpy())
            self.log_scale.fill_(math.log(scale))
            self.bias.fill_(bias)

    def text_features(self) -> Tensor:
        """Unit features of the class prompts, (class, feature)."""
        return self.encode(*self.prompts())

    def encode(self, ids: Tensor, embeddings: Tensor) -> Tensor:
        """Unit features (class, feature) of prompts, from as many positions as the longest one needs."""
        return self.clip.encode_prompts(ids, embeddings, self._tower)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """``loss``, and its parts ``classification`` and, where captions count, ``contrast``."""
        device = self.prompts.context.device
        features, targets, captions, has_caption = (part.to(device) for part in batch)
        ids, embeddings = self.prompts()
        text = self.encode(ids, embeddings)
        classification = self.classification_loss(self._logits(features, text), targets)
        if self.mix == 1:
            return {"loss": classification, "classification": classification}
        if not has_caption.all():
            captions, targets = captions[has_caption], targets[has_caption]
        contrast = self._contrast(captions, targets, text, embeddings)
        loss = torch.lerp(contrast, classification, self.mix)
        return {"loss": loss, "classification": classification, "contrast": contrast}

    def classification_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The chosen loss on logits (image, class)."""
        if self.classification == "binary_cross_entropy":
            return binary_cross_entropy(logits, targets)
        if self.classification == "focal":
            return focal_loss(logits, targets)
        if self.classification == "asymmetric":
            return asymmetric_loss(logits, targets)
        if self.classification == "class_balanced":
            return class_balanced_loss(logits, targets, class_counts=self.class_counts)
        return distribution_balanced_loss(
            logits, targets, class_counts=self.class_counts, num_images=self.num_images, **self._balanced
        )

    def _contrast(self, captions: Tensor, targets: Tensor, text: Tensor, embeddings: Tensor) -> Tensor:
        if not len(captions):
            return text.sum() * 0  # a batch without captions: nothing to learn, and a gradient of zero
        if self.reading == "pooled":
            distances = 1 - _cosines(captions, text)
        else:
            prompt = F.normalize(embeddings[:, self.token_offset :], dim=-1)
            num_positions = min(prompt.shape[1], captions.shape[1])
            pairs = captions[:, :num_positions].transpose(0, 1), prompt[:, :num_positions].transpose(0, 1)
            apart = 1 - _cosines(*pairs)  # (position, image, class)
            if self.position_hinge == "sum":
                distances = apart.sum(dim=0)
            else:
                distances = apart.transpose(0, 1).flatten(0, 1)
                targets = targets.repeat_interleave(num_positions, dim=0)
        loss = weighted_embedding_loss(distances, targets, self._margins, self._weights)
        return loss * targets.shape[1] if self.contrast_reduction == "weighted" else loss

    def _logits(self, features: Tensor, text: Tensor) -> Tensor:
        return self.log_scale.exp() * _cosines(features, text) + self.bias

    @torch.no_grad()
    def scores(self, features: Tensor) -> Tensor:
        """Logits (image, class), on the CPU; a sigmoid, never a softmax, belongs on them."""
        return self._logits(features.to(self.bias.device), self.text_features()).cpu()


def _check_offset(offset: int, num_tokens: int) -> None:
    if not 0 <= offset < num_tokens:
        raise ValueError(
            f"token_offset is {offset}; expected 0 or more and below the prompts' {num_tokens} positions, "
            "or None: as many as there are context vectors"
        )


def _cosines(rows: Tensor, others: Tensor) -> Tensor:
    """Products of unit rows (..., row, dim) and (..., other, dim), in float32 under autocast too."""
    with without_autocast(rows.device.type):
        return rows.float() @ others.float().mT
