"""Players of pictures: slider, play button and strip show the same states, and each says its numbers."""

import base64

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.views import moving
from gcpl_lab.views.hills import CaptionDistances
from gcpl_lab.views.score_strip import fit_score_map
from gcpl_lab.views.widgets import Player, SampleReviewer
from gcpl_lab.views.widgets.review import read_review

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(3), 8)
NAMES = ["shirt", "coat", "сапог"]


def scores(lead):
    return np.eye(3)[LABELS] * lead + RNG.normal(0, 0.05, (24, 3))


STATES = {"class names": scores(0.02), "step 8": scores(0.1), "step 240": scores(0.4)}
JUDGED = {name: (part, LABELS) for name, part in STATES.items()}
HILLS = {name: (RNG.normal(gap, 1, 9), RNG.normal(-gap, 1, 9)) for name, gap in (("names", 0.0), ("step 8", 2.0))}
STEPS = np.array([0, 8])


def captions(lead=0.0):
    ridge = {"head": CaptionDistances(RNG.uniform(0, 1, 6), RNG.uniform(0, 1, 6) + lead, 0.1)}
    return {"LMPT": ridge, "shuffled": ridge}


PLAYERS = {
    "map": lambda: moving.moving_maps(JUDGED, NAMES, {"shuffled": (scores(0.0), LABELS)}),
    "hills": lambda: moving.moving_hills(HILLS, ("shirt", "coat"), {"shuffled": HILLS["names"]}),
    "prompts": lambda: moving.moving_lines(
        {"GCPL": (STEPS, np.array([0.9, 0.3]))}, {"GCPL": [(0, 0.4, 0.3, 0.5), (8, 0.6, 0.5, 0.7)]}, chance=1 / 3
    ),
    "scores": lambda: moving.moving_scores(fit_score_map(STATES, LABELS, NAMES, "pca")),
    "captions": lambda: moving.moving_captions({"epoch 0": captions(), "epoch 4": captions(0.2)}, ["shuffled"]),
    "tokens": lambda: moving.moving_tokens({step: RNG.normal(size=(3, 2, 5)) for step in (0, 10, 20)}, NAMES),
}


@pytest.mark.parametrize("name", PLAYERS)
def test_the_play_button_moves_the_slider_and_the_strip_stands_behind(name):
    player = Player(PLAYERS[name]())
    first, said = player.png.value, player.sentence
    player.play.value = 1
    assert player.error is None
    assert player.step.index == 1
    assert player.png.value != first
    assert player.sentence != said
    player.step.index = 0  # as an arrow key does
    assert player.png.value == first
    strip = base64.b64decode(player._repr_mimebundle_()["image/png"])
    assert strip.startswith(b"\x89PNG")
    assert strip != first


def test_sentences_say_the_numbers():
    player = Player(PLAYERS["map"]())
    right = int((STATES["class names"].argmax(axis=1) == LABELS).sum())
    assert player.sentence.startswith(f"class names: {right / 24:.0%}")
    assert "of 24" in player.sentence
    assert PLAYERS["prompts"]().say("0") == "Step 0: cosine of the prompts GCPL 0.90; in their own sector GCPL 40%."


def test_one_state_is_no_way():
    with pytest.raises(DataError, match="expected two or more to go through"):
        moving.moving_maps({"a": (scores(0.1), LABELS)}, NAMES)
    with pytest.raises(DataError, match="train first"):
        moving.moving_tokens({0: np.zeros((3, 1, 2))}, NAMES)
    with pytest.raises(DataError, match="one row for each class"):
        moving.moving_tokens(dict.fromkeys((0, 1), np.zeros((2, 1, 2))), NAMES)


def test_tokens_say_how_far_they_moved_and_have_a_page_a_step():
    start = np.zeros((3, 1, 2))
    end = start.copy()
    end[1] = [3, 4]
    tokens = moving.moving_tokens({7: end, 0: start}, NAMES)
    assert tokens.say("7").startswith("Step 7 of 7: the tokens have moved 1.67 on average, coat farthest (5.00)")
    pages = list(tokens.pages())
    assert [said.split(":")[0] for _, said in pages] == ["Step 0 of 7", "Step 7 of 7"]
    assert len({tuple(figure.get_size_inches()) for figure, _ in pages}) == 1


def test_a_saved_selection_of_the_hover_map_opens_for_review(tmp_path):
    (tmp_path / "images" / "shirt").mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "images" / "shirt" / "a.png")
    selection = tmp_path / "selection.csv"
    selection.write_text('file,class,prediction,probability\n"shirt/a.png","shirt","coat","61.0%"\n', encoding="utf-8")
    reviewer = SampleReviewer.of_selection(selection, tmp_path / "images", tmp_path / "review.csv")
    assert reviewer.present_id == "shirt/a.png"
    reviewer.reject.click()
    assert read_review(tmp_path / "review.csv")["shirt/a.png"]["label"] == "shirt"
    selection.write_text("name\na.png\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match="expected the columns file and class"):
        SampleReviewer.of_selection(selection, tmp_path, tmp_path / "review.csv")
