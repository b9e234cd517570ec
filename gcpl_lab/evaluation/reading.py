"""Reading learned prompts: the words nearest to each vector, beside what a random vector would find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class ReadableTower(Protocol):
    """A text encoder whose vocabulary can be spelled out."""

    def word_of(self, token_id: int) -> str:
        """The piece of text of a token id, with ``</w>`` at the end of a word."""

    @property
    def embedding_table(self) -> Tensor:
        """(vocabulary, dim)."""


@dataclass(frozen=True)
class NearestWords:
    """Whole words of the vocabulary nearest to one learned vector.

    Attributes:
        words: The nearest first.
        similarities: Their cosines, −1 to 1.
        random_similarity: Mean best cosine of random vectors: what nearness means nothing.
    """

    words: tuple[str, ...]
    similarities: tuple[float, ...]
    random_similarity: float


def nearest_words(
    tower: ReadableTower, vectors: Tensor, num_words: int = 5, num_random: int = 200, seed: int = 0
) -> list[NearestWords]:
    """Find the whole words whose token embeddings point the way each vector does.

    Args:
        tower: Offers the vocabulary and its embeddings.
        vectors: (vector, dim).
        num_words: Words for each vector.
        num_random: Random normal vectors, spread like the table, for the baseline.
        seed: Of the random vectors.

    Returns:
        One entry a vector.
    """
    table = tower.embedding_table.detach().float().cpu()
    pieces = [tower.word_of(index) for index in range(len(table))]
    ids = [i for i, piece in enumerate(pieces) if piece.endswith("</w>") and len(piece) > 5 and piece[:-4].isalpha()]
    words = [pieces[index].removesuffix("</w>") for index in ids]
    directions = F.normalize(table[torch.tensor(ids)], dim=-1)
    generator = torch.Generator().manual_seed(seed)
    random = table.mean(0) + table.std(0) * torch.randn((num_random, table.shape[1]), generator=generator)
    baseline = float((F.normalize(random, dim=-1) @ directions.T).max(dim=1).values.mean())
    cosines = F.normalize(vectors.detach().float().cpu(), dim=-1) @ directions.T
    best = cosines.topk(min(num_words, len(words)), dim=1)
    return [
        NearestWords(tuple(words[int(i)] for i in row), tuple(float(v) for v in values), baseline)
        for row, values in zip(best.indices, best.values, strict=True)
    ]


def prompt_similarity(hidden: Tensor) -> Tensor:
    """Cosine matrix (class, class) of prompts' conditionings.

    Every position of a prompt counts, since the denoiser attends to all of them; the mean prompt is taken
    away first, because what all prompts share says nothing about classes.

    Args:
        hidden: (class, token, dim).
    """
    flat = hidden.detach().float().flatten(1).cpu()
    return F.normalize(flat - flat.mean(0), dim=-1) @ F.normalize(flat - flat.mean(0), dim=-1).T


def mean_similarity(matrix: Tensor, class_names: Sequence[str], members: Sequence[str]) -> float:
    """Mean cosine between different classes of one family; nan for a family of one."""
    ids = [index for index, name in enumerate(class_names) if name in members]
    if len(ids) < 2:
        return float("nan")
    block = matrix[ids][:, ids]
    return float((block.sum() - block.diagonal().sum()) / (len(ids) * (len(ids) - 1)))
