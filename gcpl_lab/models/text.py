"""What learned prompts need to know of a frozen text encoder, whichever model it belongs to."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gcpl_lab.errors import DataError


class TextTower(Protocol):
    """What prompts need to know of a frozen text encoder (FrozenDiffusion and FrozenCLIP both offer it)."""

    @property
    def context_length(self) -> int:
        """Number of positions a prompt may have, start and end included."""

    @property
    def start_id(self) -> int:
        """Token id in front of every prompt."""

    @property
    def end_id(self) -> int:
        """Token id behind every prompt."""

    @property
    def pad_id(self) -> int:
        """Token id that fills a prompt up."""

    def word_ids(self, text: str) -> list[int]:
        """Token ids of a text without start, end or padding."""

    @property
    def embedding_table(self) -> Tensor:
        """(vocabulary, dim)."""


PLACEHOLDER_ID = 0
"""Stands in the ids where a learned vector stands in the embeddings; any id but the end's does."""


def check_length(num_tokens: int, context_length: int, what: str) -> None:
    if num_tokens > context_length:
        raise DataError(
            f"{what} takes {num_tokens} tokens with start and end, {num_tokens - context_length} more than the text "
            f"encoder's {context_length}; use a shorter name, a shorter template or fewer vectors"
        )
