"""Learnable prompts: class tokens inside a template (GCPL), and context vectors around class names (CoOp, LMPT).

Both only produce token ids and token embeddings; which frozen text encoder reads them is the caller's
choice, so a token learned through the diffusion model can be read by CLIP as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gcpl_lab.errors import DataError

Initial = Literal["name", "coarse", "random"]


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


def _check_length(num_tokens: int, context_length: int, what: str) -> None:
    if num_tokens > context_length:
        raise DataError(
            f"{what} takes {num_tokens} tokens with start and end, {num_tokens - context_length} more than the text "
            f"encoder's {context_length}; use a shorter name, a shorter template or fewer vectors"
        )


def _name_vectors(tower: TextTower, text: str, num_vectors: int) -> Tensor:
    """The text's own token embeddings, repeated in order where there are fewer than ``num_vectors``.

    Where the text has more tokens, neighbouring ones are averaged, so that none is lost.
    """
    ids = tower.word_ids(text)
    if not ids:
        raise DataError(f"the name {text!r} has no tokens; give the class a name with letters or digits")
    tokens = tower.embedding_table.detach()[torch.tensor(ids, device=tower.embedding_table.device)].float().cpu()
    if len(ids) <= num_vectors:
        return tokens[torch.arange(num_vectors) % len(ids)]
    return torch.stack([tokens[torch.as_tensor(part)].mean(0) for part in np.array_split(range(len(ids)), num_vectors)])


class ClassPrompts(nn.Module):
    """V learnable vectors for each class, standing where a template says ``{}``.

    Attributes:
        vectors: The only parameter, float32 (class, V, dim).
        class_names: In the order of the class ids.
        templates: Texts with one ``{}`` each; the first is the one that is used after training.
    """

    def __init__(
        self,
        tower: TextTower,
        class_names: Sequence[str],
        *,
        num_vectors: int = 4,
        templates: Sequence[str] = ("a photo of a {}",),
        initial: Initial = "name",
        coarse_words: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        """Build the templates' ids and the starting vectors.

        Args:
            tower: The frozen text encoder that will read the prompts.
            class_names: One a class.
            num_vectors: V ≥ 1.
            templates: At least one.
            initial: ``"name"``: the tokens of the class's own name; ``"coarse"``: those of its coarse word;
                ``"random"``: normal, with the mean and spread of the embedding table.
            coarse_words: One a class, needed for ``initial="coarse"``.
            seed: Of the random start.

        Raises:
            DataError: A template without exactly one ``{}``, a prompt longer than the context, a name
                without tokens.
        """
        super().__init__()
        if num_vectors < 1:
            raise ValueError(f"num_vectors is {num_vectors}; expected 1 or more")
        self.class_names, self.templates, self.initial = tuple(class_names), tuple(templates), initial
        self._ids: list[Tensor] = []
        self._starts: list[int] = []
        for index, template in enumerate(self.templates):
            ids, start = _template_ids(tower, template, num_vectors)
            self._ids.append(ids)
            self._starts.append(start)
            self.register_buffer(f"base_{index}", tower.embedding_table.detach()[ids].float().cpu(), persistent=False)
        self.vectors = nn.Parameter(self._initial_vectors(tower, num_vectors, coarse_words, seed))

    def _initial_vectors(
        self, tower: TextTower, num_vectors: int, coarse_words: Sequence[str] | None, seed: int
    ) -> Tensor:
        if self.initial == "random":
            table = tower.embedding_table.detach().float().cpu()
            generator = torch.Generator().manual_seed(seed)
            shape = (len(self.class_names), num_vectors, table.shape[1])
            return table.mean(0) + table.std(0) * torch.randn(shape, generator=generator)
        words: Sequence[str] = self.class_names
        if self.initial == "coarse":
            if coarse_words is None or len(coarse_words) != len(self.class_names):
                given = "none" if coarse_words is None else len(coarse_words)
                raise DataError(
                    f"initial='coarse' needs one coarse word a class ({len(self.class_names)}), got {given}"
                )
            words = coarse_words
        elif self.initial != "name":
            raise ValueError(f"initial is {self.initial!r}; expected 'name', 'coarse' or 'random'")
        return torch.stack([_name_vectors(tower, word, num_vectors) for word in words])

    @property
    def num_vectors(self) -> int:
        """V."""
        return int(self.vectors.shape[1])

    def beginning(self, template: int = 0) -> Tensor:
        """Ids in front of a template's vectors, int64 (token,): the same in the prompts of all classes."""
        return self._ids[template][: self._starts[template]]

    def forward(self, class_ids: Tensor | None = None, template: int = 0) -> tuple[Tensor, Tensor]:
        """Ids and embeddings of the prompts of some classes.

        Args:
            class_ids: int64 (batch,), or None for all classes in order.
            template: Which template.

        Returns:
            ids int64 (batch, context length) and embeddings float32 (batch, context length, dim).
        """
        vectors = self.vectors if class_ids is None else self.vectors[class_ids.to(self.vectors.device)]
        base: Tensor = getattr(self, f"base_{template}")
        start = self._starts[template]
        front = base[:start].expand(len(vectors), -1, -1)
        behind = base[start + self.num_vectors :].expand(len(vectors), -1, -1)
        ids = self._ids[template].to(vectors.device).expand(len(vectors), -1)
        return ids, torch.cat([front, vectors, behind], dim=1)


def _template_ids(tower: TextTower, template: str, num_vectors: int) -> tuple[Tensor, int]:
    if template.count("{}") != 1:
        raise DataError(f"the template {template!r} has {template.count('{}')} places {{}}; expected exactly one")
    front, behind = (tower.word_ids(part) if part.strip() else [] for part in template.split("{}"))
    ids = [tower.start_id, *front, *[PLACEHOLDER_ID] * num_vectors, *behind, tower.end_id]
    _check_length(len(ids), tower.context_length, f"the template {template!r} with {num_vectors} vectors")
    ids += [tower.pad_id] * (tower.context_length - len(ids))
    return torch.tensor(ids), 1 + len(front)


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
        _check_length(len(row), tower.context_length, f"class {name!r} with {added}")
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
