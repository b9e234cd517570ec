"""Reading learned prompts: the nearest words, what chance would find, and how alike prompts are."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gcpl_lab.evaluation.reading import mean_similarity, nearest_words, prompt_similarity


def test_a_words_own_embedding_is_nearest_to_it(diffusion: Any) -> None:
    ids = [diffusion.tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in ("shirt", "sandal")]
    found = nearest_words(diffusion, diffusion.embedding_table[torch.tensor(ids)] * 3, num_words=4)
    assert [near.words[0] for near in found] == ["shirt", "sandal"]
    for near in found:
        assert near.similarities[0] == pytest.approx(1, abs=1e-6)
        assert len(near.words) == len(near.similarities) == 4
        assert list(near.similarities) == sorted(near.similarities, reverse=True)
        assert 0 < near.random_similarity < 0.9  # a random vector comes near to some word, but not as near
    assert found == nearest_words(diffusion, diffusion.embedding_table[torch.tensor(ids)] * 3, num_words=4)


def test_only_whole_words_of_letters_count() -> None:
    pieces = ["red</w>", "round</w>", "ro", "1</w>", "x</w>"]
    table = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0], [-3.0, 0.1], [0.1, -3.0]])
    tower: Any = SimpleNamespace(embedding_table=table, word_of=pieces.__getitem__)
    (near,) = nearest_words(tower, torch.tensor([[3.0, 4.0]]), num_words=9)
    assert near.words == ("round", "red")
    assert near.similarities == pytest.approx((0.8, 0.6))
    assert near.random_similarity < 1


def test_prompt_similarity_is_symmetric_with_ones_on_its_diagonal_and_leaves_out_what_all_share() -> None:
    hidden = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    matrix = prompt_similarity(hidden)
    assert matrix.shape == (5, 5)
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(5))
    torch.testing.assert_close(prompt_similarity(hidden + 50.0), matrix, atol=1e-4, rtol=0)
    # Two prompts are opposite once their mean is taken away.
    opposite = prompt_similarity(torch.tensor([[[1.0, 0.0]], [[1.0, 0.5]]]))
    torch.testing.assert_close(opposite, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))


def test_mean_similarity_by_hand() -> None:
    matrix = torch.tensor([[1.0, 0.2, 0.9, 0.4], [0.2, 1.0, 0.9, 0.6], [0.9, 0.9, 1.0, 0.9], [0.4, 0.6, 0.9, 1.0]])
    assert mean_similarity(matrix, tuple("abcd"), ("a", "b", "d")) == pytest.approx((0.2 + 0.4 + 0.6) / 3)
    assert math.isnan(mean_similarity(matrix, tuple("abcd"), ("c",)))
