"""Reading learned prompts: the words nearest to each vector, beside what a random vector would find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion

NUM_RANDOM = 200  # vectors behind the baseline of every nearest word


@dataclass(frozen=True)
class NearestWords:
    """Whole words of the vocabulary nearest to one learned vector, the nearest first."""

    words: tuple[str, ...]
    similarities: tuple[float, ...]  # cosines
    random_similarity: float  # mean best cosine of random vectors; a word that is no nearer means nothing


def nearest_words(tower: FrozenDiffusion | FrozenCLIP, vectors: Tensor, num_words: int = 5) -> list[NearestWords]:
    """For each vector of (vector, dim), the tower's whole words whose token embeddings point the way it does."""
    table = tower.embedding_table.detach().float().cpu()
    pieces = [tower.word_of(index) for index in range(len(table))]
    ids = [i for i, piece in enumerate(pieces) if piece.endswith("</w>") and len(piece) > 5 and piece[:-4].isalpha()]
    words = [pieces[index].removesuffix("</w>") for index in ids]
    directions = F.normalize(table[torch.tensor(ids)], dim=-1)
    generator = torch.Generator().manual_seed(0)  # random vectors that are spread like the table
    random = table.mean(0) + table.std(0) * torch.randn((NUM_RANDOM, table.shape[1]), generator=generator)
    baseline = float((F.normalize(random, dim=-1) @ directions.T).max(dim=1).values.mean())
    cosines = F.normalize(vectors.detach().float().cpu(), dim=-1) @ directions.T
    best = cosines.topk(min(num_words, len(words)), dim=1)
    return [
        NearestWords(tuple(words[int(i)] for i in row), tuple(float(v) for v in values), baseline)
        for row, values in zip(best.indices, best.values, strict=True)
    ]


def prompt_similarity(hidden: Tensor) -> Tensor:
    """Cosine matrix (class, class) of prompts' conditionings (class, token, dim).

    The denoiser attends to every position of a prompt; the mean prompt is taken away first, because what all prompts
    share says nothing about classes.
    """
    flat = hidden.detach().float().flatten(1).cpu()
    directions = F.normalize(flat - flat.mean(0), dim=-1)
    return directions @ directions.T


def mean_similarity(matrix: Tensor, class_names: Sequence[str], members: Sequence[str]) -> float:
    """Mean cosine between different classes of one family; nan for a family of one."""
    ids = [index for index, name in enumerate(class_names) if name in members]
    if len(ids) < 2:
        return float("nan")
    block = matrix[ids][:, ids]
    return float((block.sum() - block.diagonal().sum()) / (len(ids) * (len(ids) - 1)))
