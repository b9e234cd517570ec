"""Class prompts: learnable vectors inside a template, such as "a photo of a [v1 .. vV]".

They give token ids and embeddings; which frozen text encoder reads them is the caller's choice, so a token learned
through the diffusion model can be read by CLIP as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gcpl_lab.errors import DataError
from gcpl_lab.models.text import PLACEHOLDER_ID, TextTower, check_length

Initial = Literal["name", "coarse", "random"]


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
            DataError: A template without exactly one ``{}``, a prompt longer than the context, a name without tokens.
        """
        super().__init__()
        if num_vectors < 1:
            raise ValueError(f"num_vectors is {num_vectors}; expected 1 or more")
        self.class_names, self.templates, self.initial = tuple(class_names), tuple(templates), initial
        placed = [_template_ids(tower, template, num_vectors) for template in self.templates]
        self._ids, self._starts = [ids for ids, _ in placed], [start for _, start in placed]
        for index, ids in enumerate(self._ids):
            self.register_buffer(f"base_{index}", tower.embedding_table.detach()[ids].float().cpu(), persistent=False)
        self.vectors = nn.Parameter(self._initial_vectors(tower, num_vectors, coarse_words, seed))

    @classmethod
    def of(
        cls, tower: TextTower, class_names: Sequence[str], vectors: Tensor, templates: Sequence[str]
    ) -> ClassPrompts:
        """Prompts of given vectors (class, V, dim)."""
        shape: dict[str, Any] = {"num_vectors": vectors.shape[1], "templates": templates, "initial": "random"}
        prompts = ClassPrompts(tower, class_names, **shape).to(tower.embedding_table.device)
        with torch.no_grad():
            prompts.vectors.copy_(vectors)
        return prompts

    def _initial_vectors(
        self, tower: TextTower, num_vectors: int, coarse_words: Sequence[str] | None, seed: int
    ) -> Tensor:
        num_classes = len(self.class_names)
        if self.initial == "random":
            table = tower.embedding_table.detach().float().cpu()
            shape = (num_classes, num_vectors, table.shape[1])
            return table.mean(0) + table.std(0) * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        if self.initial == "name":
            coarse_words = self.class_names
        elif self.initial != "coarse":
            raise ValueError(f"initial is {self.initial!r}; expected 'name', 'coarse' or 'random'")
        if coarse_words is None or len(coarse_words) != num_classes:
            given = "none" if coarse_words is None else len(coarse_words)
            raise DataError(f"initial='coarse' needs one coarse word a class ({num_classes}), got {given}")
        return torch.stack([_name_vectors(tower, word, num_vectors) for word in coarse_words])

    @property
    def num_vectors(self) -> int:
        """V."""
        return int(self.vectors.shape[1])

    def forward(self, class_ids: Tensor | None = None, template: int = 0) -> tuple[Tensor, Tensor]:
        """Ids int64 (batch, context length) and embeddings float32 (batch, context length, dim) of some classes.

        Args:
            class_ids: int64 (batch,), or None for all classes in order.
            template: Which template.
        """
        vectors = self.vectors if class_ids is None else self.vectors[class_ids.to(self.vectors.device)]
        base, start = self.get_buffer(f"base_{template}").expand(len(vectors), -1, -1), self._starts[template]
        ids = self._ids[template].to(vectors.device).expand(len(vectors), -1)
        return ids, torch.cat([base[:, :start], vectors, base[:, start + vectors.shape[1] :]], dim=1)


def _template_ids(tower: TextTower, template: str, num_vectors: int) -> tuple[Tensor, int]:
    if template.count("{}") != 1:
        raise DataError(f"the template {template!r} has {template.count('{}')} places {{}}; expected exactly one")
    front, behind = (tower.word_ids(part) if part.strip() else [] for part in template.split("{}"))
    ids = [tower.start_id, *front, *[PLACEHOLDER_ID] * num_vectors, *behind, tower.end_id]
    check_length(len(ids), tower.context_length, f"the template {template!r} with {num_vectors} vectors")
    return torch.tensor(ids + [tower.pad_id] * (tower.context_length - len(ids))), 1 + len(front)
