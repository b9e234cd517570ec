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


def test_a_random_vector_comes_near_to_some_word_but_not_as_near_as_a_word_itself(diffusion: Any) -> None:
    baseline = nearest_words(diffusion, torch.ones(1, diffusion.embedding_table.shape[1]))[0].random_similarity
    assert 0 < baseline < 0.9


def test_the_baseline_and_the_nearest_word_follow_from_the_vocabulary() -> None:
    """Two words along two axes: the best cosine of a direction on the circle is at least cos 45° where it counts."""
    pieces = ["red</w>", "round</w>", "ro", "1</w>", "x</w>"]  # the last three are no whole words of letters
    table = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0], [-3.0, 0.1], [0.1, -3.0]])
    tower = SimpleNamespace(embedding_table=table, word_of=pieces.__getitem__)
    (near,) = nearest_words(tower, torch.tensor([[3.0, 4.0]]), num_words=9)
    assert near.words == ("round", "red")
    assert near.similarities == pytest.approx((0.8, 0.6))
    assert near.random_similarity < 1


def test_the_same_seed_gives_the_same_baseline(diffusion: Any) -> None:
    vectors = torch.ones(1, diffusion.embedding_table.shape[1])
    first, again, other = (nearest_words(diffusion, vectors, seed=seed)[0].random_similarity for seed in (0, 0, 1))
    assert first == again != other


def test_prompt_similarity_is_symmetric_with_ones_on_its_diagonal() -> None:
    hidden = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    matrix = prompt_similarity(hidden)
    assert matrix.shape == (5, 5)
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(5))
    assert float(matrix.abs().max()) <= 1 + 1e-6


def test_what_all_prompts_share_does_not_make_them_alike() -> None:
    hidden = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(prompt_similarity(hidden + 50.0), prompt_similarity(hidden), atol=1e-4, rtol=0)


def test_two_prompts_are_opposite_once_their_mean_is_taken_away() -> None:
    torch.testing.assert_close(
        prompt_similarity(torch.tensor([[[1.0, 0.0]], [[1.0, 0.5]]])), torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    )


def test_mean_similarity_by_hand() -> None:
    matrix = torch.tensor([[1.0, 0.2, 0.9, 0.4], [0.2, 1.0, 0.9, 0.6], [0.9, 0.9, 1.0, 0.9], [0.4, 0.6, 0.9, 1.0]])
    names = ("a", "b", "c", "d")
    assert mean_similarity(matrix, names, ("a", "b", "d")) == pytest.approx((0.2 + 0.4 + 0.6) / 3)
    assert math.isnan(mean_similarity(matrix, names, ("c",)))
