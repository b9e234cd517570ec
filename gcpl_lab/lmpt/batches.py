"""Captions and cached image features, and the batches that are drawn from them by step number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gcpl_lab.data.sets import CAPTION_SEPARATOR
from gcpl_lab.models.clip import FrozenCLIP

Reading = Literal["pooled", "token"]
MOST_BYTES = 64 * 2**20


class Batch(NamedTuple):
    """Cached images of one update.

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
    unit again. A caption longer than the context is cut where the tokenizer cuts it. However many there are, no more
    than ``MOST_BYTES`` of their encodings are held beside the result.

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
    shape = _encode(clip, ["a"], reading).shape[1:]
    rows, counts = torch.zeros(len(captions), *shape), torch.zeros(len(captions))
    pairs = (
        (index, _cut(part, clip.context_length))
        for index, caption in enumerate(captions)
        for part in (caption or "").split(CAPTION_SEPARATOR)
        if part.strip()
    )
    while held := list(islice(pairs, max(batch_size, MOST_BYTES // (4 * shape.numel())))):
        unique = sorted({text for _, text in held})
        place = {text: number for number, text in enumerate(unique)}
        table = torch.empty(len(unique), *shape)  # small parts that stay would keep what lies between them from use
        for i in range(0, len(unique), batch_size):
            table[i : i + batch_size] = _encode(clip, unique[i : i + batch_size], reading)
        images = torch.tensor([index for index, _ in held])
        rows.index_add_(0, images, table[[place[text] for _, text in held]])
        counts.index_add_(0, images, torch.ones(len(held)))
    present = counts > 0
    rows[present] = F.normalize(rows[present] / counts[present].reshape(-1, *[1] * len(shape)), dim=-1)
    return rows, present


def _cut(text: str, context_length: int) -> str:
    """As much of a text as can reach the context: tokenizers read all of it, however long, before they cut it."""
    if len(text) <= 16 * context_length:
        return text
    words = text.split(maxsplit=4 * context_length)[: 4 * context_length]
    return " ".join(word[: 32 * context_length] for word in words)


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
        self, views: Tensor, targets: Tensor, captions: Tensor, has_caption: Tensor, batch_size: int, seed: int
    ) -> None:
        """Keep what is cached.

        Args:
            views: (view, image, feature), unit features.
            targets: (image, class), 0 or 1.
            captions: See :func:`encode_captions`.
            has_caption: bool (image,).
            batch_size: Images a step; an epoch's last batch holds what is left.
            seed: Of order and views.
        """
        self.views, self.targets, self.captions, self.has_caption = views, targets, captions, has_caption
        self._rows = views.flatten(0, 1)
        self.batch_size, self.seed = batch_size, seed
        self._latest: tuple[int, Tensor, Tensor] | None = None

    def subset(self, indices: np.ndarray) -> CachedBatches:
        """Batches of some of the images, int64 (image,), alone."""
        chosen = torch.from_numpy(indices)
        return CachedBatches(
            self.views[:, chosen],
            self.targets[chosen],
            self.captions[chosen],
            self.has_caption[chosen],
            self.batch_size,
            self.seed,
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
        # Indices in brackets would take three times as long.
        kept = [values.index_select(0, images) for values in (self.targets, self.captions, self.has_caption)]
        return Batch(self._rows.index_select(0, rows), *kept)

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Images in their order, and the row of the view that each is seen in, int64 (image,); the latest are kept."""
        if self._latest is None or self._latest[0] != epoch:
            state = np.random.SeedSequence([self.seed, 23, epoch]).generate_state(1)
            generator = torch.Generator().manual_seed(int(state[0]))
            order = torch.randperm(len(self.targets), generator=generator)
            view = torch.randint(len(self.views), (len(order),), generator=generator)
            self._latest = epoch, order, view * len(order) + order
        return self._latest[1:]
