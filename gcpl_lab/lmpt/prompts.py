"""Context vectors around class names (CoOp, LMPT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gcpl_lab.errors import DataError
from gcpl_lab.models.text import PLACEHOLDER_ID, TextTower, check_length


def _context_rows(
    tower: TextTower, class_names: Sequence[str], front: int, behind: int, ending: str
) -> tuple[Tensor, Tensor]:
    """Ids (class, token) of names with ``front`` vectors before and ``behind`` after; places of these, (class, M)."""
    last = tower.word_ids(ending) if ending else []
    if ending and not last:
        raise DataError(f"the ending {ending!r} has no tokens; leave it empty, or give it a sign such as '.'")
    added = f"{front + behind} context vectors" + (f" and the ending {ending!r}" if ending else "")
    rows, slots = [], []
    for name in class_names:
        ids = tower.word_ids(name)
        if not ids:
            raise DataError(f"the class name {name!r} has no tokens; give it a name with letters or digits")
        row = [tower.start_id, *[PLACEHOLDER_ID] * front, *ids, *[PLACEHOLDER_ID] * behind, *last, tower.end_id]
        check_length(len(row), tower.context_length, f"class {name!r} with {added}")
        rows.append(row)
        slots.append([*range(1, 1 + front), *range(1 + front + len(ids), 1 + front + len(ids) + behind)])
    num_tokens = max(len(row) for row in rows)
    padded = [row + [tower.pad_id] * (num_tokens - len(row)) for row in rows]
    return torch.tensor(padded), torch.tensor(slots)


class ContextPrompts(nn.Module):
    """M learnable context vectors around every class's own name (CoOp; LMPT with one set a class).

    The published code of CoOp and LMPT ends every prompt with a full stop; here that is ``ending="."``. With initial
    words LMPT's has one context for all classes even where class-specific ones are asked for; here both go together.

    Attributes:
        context: The only parameter, float32 (1 or class, M, dim).

    Source: Zhou et al. 2022, https://arxiv.org/abs/2109.01134 (unified and class-specific contexts, the
    class token at the end, in the middle or in front).
    """

    def __init__(
        self,
        tower: TextTower,
        class_names: Sequence[str],
        *,
        num_context: int = 16,
        class_specific: bool = True,
        class_position: Literal["end", "middle", "front"] = "end",
        initial_words: str = "",
        ending: str = "",
        seed: int = 0,
    ) -> None:
        """Build the frozen name embeddings and the starting context.

        Args:
            tower: The frozen text encoder.
            class_names: One a class.
            num_context: M ≥ 1; with ``initial_words`` the words' own tokens replace as many of the last
                random vectors.
            class_specific: One context for each class instead of one for all.
            class_position: Where the name stands among the context vectors.
            initial_words: Words whose embeddings start the context, such as "a photo of a"; empty for
                random N(0, 0.02).
            ending: Frozen text behind the last of context and name, such as "."; empty for none.
            seed: Of the random start.

        Raises:
            DataError: A prompt that is longer than the context, saying by how much; a name or an ending without
                tokens, or initial words with more of them than there are vectors.
        """
        super().__init__()
        if class_position not in ("end", "middle", "front"):
            raise ValueError(f"class_position is {class_position!r}; expected 'end', 'middle' or 'front'")
        if num_context < 1:
            raise ValueError(f"num_context is {num_context}; expected 1 or more")
        self.class_names, self.class_position = tuple(class_names), class_position
        table = tower.embedding_table.detach().float().cpu()
        front = {"end": num_context, "middle": num_context // 2, "front": 0}[class_position]
        ids, slots = _context_rows(tower, class_names, front, num_context - front, ending)
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("base", table[ids], persistent=False)
        generator = torch.Generator().manual_seed(seed)
        shape = (len(ids) if class_specific else 1, num_context, table.shape[1])
        context = 0.02 * torch.randn(shape, generator=generator)
        words = tower.word_ids(initial_words) if initial_words else []
        if len(words) > num_context:
            raise DataError(
                f"initial_words {initial_words!r} have {len(words)} tokens, {len(words) - num_context} more than the "
                f"{num_context} context vectors; use fewer words or raise num_context"
            )
        if words:
            context[:, num_context - len(words) :] = table[torch.tensor(words)]
        self.context = nn.Parameter(context)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Ids int64 (class, token) and embeddings float32 (class, token, dim) of every class's prompt."""
        ids: Tensor = self.get_buffer("ids")
        slots: Tensor = self.get_buffer("slots")
        base: Tensor = self.get_buffer("base")
        context = self.context.expand(len(ids), -1, -1)
        index = slots.unsqueeze(-1).expand(-1, -1, base.shape[-1])
        return ids, base.scatter(1, index, context)
