"""Views of a finished run: the deck says what the run measured, whatever methods are registered today."""

import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from pptx import Presentation
from pptx.enum.shapes import MSO_SHAPE_TYPE
from typer.testing import CliRunner

from gcpl_lab.cli.app import app
from gcpl_lab.errors import ArtifactError
from gcpl_lab.evaluation.look_alikes import share_in_own_sector
from gcpl_lab.experiments import figures, pictures
from gcpl_lab.experiments.deck import make_deck
from gcpl_lab.experiments.look_alikes import LookAlikes
from gcpl_lab.experiments.run_views import make_animation, make_map
from gcpl_lab.experiments.runs import STATES, load_states
from gcpl_lab.storage import read_json, write_json, write_tensors
from gcpl_lab.views import letters

LEARNED = {"gcpl": 0.75, "comple": 0.74, "discriminative": 0.78}
SHARES = {"zero_shot_clip": 0.5, "linear_probe": 0.7, "zero_shot_diffusion": 0.6, **LEARNED}


@pytest.fixture
def run(tmp_path):
    measured = {"seed": 4, "shots": 2, "calibration_error": 0.01, "train_seconds": 2.0, "predict_seconds": 1.5}
    rows = [{"name": name, "accuracy": share, **measured} for name, share in SHARES.items()]
    data = {"name": "fashion/test", "checksum": "c0ffee" * 8, "classes": ["shirt", "coat"], "shots": 2, "test_size": 40}
    write_json(tmp_path / "results.json", {"command": "gcpl-lab demo --seed 4", "data": data, "methods": rows})
    for name in LEARNED:
        write_json(tmp_path / "prompts" / name / "prompts.json", {"config": {"contrast_weight": 0.1}})
    return tmp_path


NAMES = ["shirt", "coat", "dress"]
FORTY = [f"scratch on brushed steel with a name of sixty letters {place:06d}" for place in range(40)]


def add_states(run, names=NAMES, num_sets=1, each=12):
    """Kept states of sets of three classes that GCPL parts and shuffled labels do not."""
    count = 3 * num_sets
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(count), each)
    own, sets = np.eye(count)[labels][:, :, None], [names[3 * turn : 3 * turn + 3] for turn in range(num_sets)]

    def errors(gap, samples):
        return (1 - gap * own + rng.normal(0, 0.05, (len(labels), count, samples))).astype(np.float32)

    keys = {"zero_shot_diffusion.0": (0.02, 4), "gcpl.20": (0.3, 4), "shuffled0.4": (0.0, 2), "gcpl.1": (0.1, 2)}
    found = LookAlikes(
        sets,
        np.arange(len(labels)),
        labels,
        {key: errors(*how) for key, how in keys.items()},
        {"zero_shot_clip": rng.normal(size=(len(labels), count)).astype(np.float32)},
        {"gcpl": np.array([[0, 0.9], [1, 0.5], [20, 0.2]]), "shuffled0": np.array([[0, 0.9], [4, 0.8]])}
        if num_sets == 1
        else {name: np.c_[[0, 1, 20], rng.uniform(size=(3, num_sets))] for name in ("gcpl", "shuffled0")},
    )
    arrays = {"labels": labels, "journey": rng.normal(size=(3, len(names), 5)).astype(np.float32), **found.arrays()}
    arrays |= {
        "images": np.full((len(labels), 48, 48, 3), 200, np.uint8),
        "exemplars": np.zeros((len(names), 48, 48, 3), np.uint8),
    }
    for state, right in (("before", 0.4), ("after", 0.8)):
        chances = np.where(np.eye(len(names))[labels] > 0, right, (1 - right) / 2)
        chances = chances * rng.uniform(0.7, 1.3, chances.shape)
        arrays[f"probabilities.{state}"] = (chances / chances.sum(1, keepdims=True)).astype(np.float32)
        arrays[f"scores.{state}"] = (chances - chances.mean(1, keepdims=True)).astype(np.float32)
    families = {f"family {turn}": members for turn, members in enumerate(sets)}
    facts = {"steps": [0, 10, 20], "class_names": names, "families": families, "seed": 4}
    facts |= {"files": [f"{names[label]}/{place}.png" for place, label in enumerate(labels)]}
    facts |= {"sets": found.sets, "order": list(found.arrays())}
    write_tensors(run / STATES, {name: torch.from_numpy(v) for name, v in arrays.items()}, {"facts": json.dumps(facts)})
    return found


def read_deck(path):
    """The words of every slide, and the native charts."""
    deck = Presentation(str(path))
    charts = [shape.chart for page in deck.slides for shape in page.shapes if shape.has_chart]
    texts = [[shape.text_frame.text for shape in page.shapes if shape.has_text_frame] for page in deck.slides]
    return ["\n".join(text) for text in texts], charts


def test_the_deck_says_what_was_measured(run):
    result = CliRunner().invoke(app, ["slides", str(run), "--json"])
    assert result.exit_code == 0, result.output
    pages, charts = read_deck(json.loads(result.stdout)["files"][0])
    last_but_one = list(Presentation(json.loads(result.stdout)["files"][0]).slides)[-2]
    assert [page.split("\n")[0] for page in pages] == [
        "Only a word is learned: the diffusion model stays frozen",
        "Beside names, learned words bring +18 points",
        "Is it worth it? Linear probe reaches 70.0%, Discriminative prompts 78.0%",
        "Discriminative prompts takes 4 s to learn and classify, Linear probe 3.5 s",
        "What this does not show",
        "Next step: your own images, in three commands",
    ]
    (limits,) = [shape for shape in last_but_one.shapes if shape.shape_type == MSO_SHAPE_TYPE.PICTURE]
    described = limits._element.xpath(".//p:cNvPr")[0].get("descr")
    assert "CoMPLe did not separate the classes better than GCPL here: 74.0% against 75.0%" in described
    assert all("gcpl-lab demo --seed 4 · seed 4 · data c0ffeec0" in page for page in pages)
    assert list(charts[1].series[0].values) == sorted(SHARES.values(), reverse=True)


def test_a_run_opens_without_a_method_of_today_and_with_one_that_is_unknown(run):
    results = read_json(run / "results.json")
    rows = [row for row in results["methods"] if row["name"] != "discriminative"]
    unknown = {**rows[0], "name": "from_another_time", "accuracy": 0.9}
    write_json(run / "results.json", {**results, "methods": [*rows, unknown]})
    shutil.rmtree(run / "prompts" / "discriminative")
    pages, charts = read_deck(make_deck(run)[0])
    assert "from_another_time reaches 90.0%, GCPL 75.0%" in "\n".join(pages)
    assert "discriminative prompts" not in "\n".join(pages).lower()
    assert list(charts[0].plots[0].categories) == ["GCPL", "Zero-shot diffusion"]


def test_the_deck_of_a_run_with_look_alikes_says_each_message_with_its_numbers(run):
    found = add_states(run)
    path = make_deck(run, "dark", method="pca")[0]
    assert path.name == "slides_dark.pptx"
    deck = Presentation(str(path))
    titles = [page.shapes.title.text for page in deck.slides]
    names, learned = (found.table()[place]["share_in_own_sector"] for place in (0, 1))
    wanted = f"shirt, coat, dress: {names:.0%} in their own sector with names, {learned:.0%} after learning"
    assert wanted in titles
    assert any("the hills come apart from d′" in title for title in titles)
    (hills,) = [page for page in read_deck(path)[0] if "the hills come apart from d′" in page]
    assert "after learning. Control: labels shuffled" in hills  # a claim of separation stands beside its control
    for page in deck.slides:
        boxes = [(s.left, s.top, s.left + s.width, s.top + s.height) for s in page.shapes]
        for a, b in combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], page.shapes.title.text
        for shape in page.shapes:
            described = shape._element.xpath(".//p:cNvPr")[0].get("descr")
            if shape.shape_type == MSO_SHAPE_TYPE.PICTURE or shape.has_chart:
                assert described.startswith(page.shapes.title.text)  # the alt text says the message
        assert "They will ask" in page.notes_slide.notes_text_frame.text
        assert any(shape.has_chart or shape.shape_type == MSO_SHAPE_TYPE.PICTURE for shape in page.shapes)
    for told in ("All on one map", "The prompts part", "the hills come apart"):
        assert any(told in title for title in titles)


def test_forty_classes_and_names_of_sixty_letters_are_drawn_whole(run):
    add_states(run, FORTY, num_sets=4, each=4)
    states = load_states(run)
    drawn = {name: getattr(pictures, f"draw_{name}") for name in figures.WORDS["pictures"]}
    drawn["before_after"] = partial(pictures.draw_before_after, method="pca")
    for name, draw in drawn.items():
        figure = draw(states)
        left, bottom, right, top = figure.bbox.padded(2).extents
        texts = letters.shown_texts(figure)
        boxes = {text: text.get_window_extent() for text in texts if not text.get_rotation() % 90}
        outside = [
            t.get_text() for t, b in boxes.items() if min(b.x0 - left, b.y0 - bottom, right - b.x1, top - b.y1) < 0
        ]
        assert outside == [], name
        ours = [(text, box) for text, box in boxes.items() if not text.get_text().endswith("\n")]  # room for others
        for (one, a), (other, b) in combinations(ours, 2):
            shared = max(0, min(a.x1, b.x1) - max(a.x0, b.x0)) * max(0, min(a.y1, b.y1) - max(a.y0, b.y0))
            assert shared < 0.3 * min(a.width * a.height, b.width * b.height), (name, one.get_text(), other.get_text())
    assert len(Presentation(str(make_deck(run, method="pca")[0])).slides) > 8  # its slides refuse what does not fit


def test_map_and_animation_are_made_of_the_kept_states(run):
    add_states(run)
    page = make_map(run, "pca").read_text(encoding="utf-8")
    assert "Before: class names" in page
    assert "After: learned prompts" in page
    made = {path.relative_to(run / "animation").as_posix() for path in make_animation(run, "pca")}
    pictures = ("journey", "decision_map", "pair_hills", "prompts_and_images", "score_map")
    assert made >= {f"{name}.{ending}" for name in pictures for ending in ("gif", "html")}
    flip = (run / "animation" / "decision_map.html").read_text(encoding="utf-8")
    assert [caption in flip for caption in ("Class names", "GCPL, step 1", "GCPL, step 20")] == [True] * 3


def test_the_kept_look_alikes_come_back_and_their_table_is_what_was_promised(run):
    kept = add_states(run)
    found = load_states(run).look_alikes
    assert found.table() == kept.table()
    assert list(found.errors) == list(kept.errors)
    rows = found.table()
    assert [row["method"] for row in rows[:3]] == ["Zero-shot diffusion", "GCPL", "Shuffled labels"]
    assert rows[1]["share_in_own_sector"] > 0.9  # what was learned parts them
    assert rows[2]["low"] < 1 / 3 < rows[2]["high"] or rows[2]["high"] < 1 / 3  # the control lies near chance or below
    assert [row["step"] for row in rows] == [0, 20, 4, None, 1]


def test_a_run_without_states_says_what_to_do(run):
    with pytest.raises(ArtifactError, match="run gcpl-lab demo again"):
        load_states(run)
    write_tensors(run / STATES, {"labels": torch.zeros(1)}, {"facts": "{}"})
    with pytest.raises(ArtifactError, match="incomplete"):
        load_states(run)


@pytest.mark.parametrize("change", [{"methods": [{"name": "gcpl"}]}, {"data": {}}, {"methods": None}, {}])
def test_results_of_something_else_are_refused(run, change):
    results = read_json(run / "results.json")
    # What was changed is not of a demonstration; what was not lacks learned prompts.
    message = (
        r"(is a required property|is not of type 'array'); restore the file, or give a run of gcpl-lab demo"
        if change
        else "holds zero_shot_clip, linear_probe, but no learned prompts"
    )
    write_json(run / "results.json", {**results, "methods": results["methods"][:2], **change})
    with pytest.raises(ArtifactError, match=message):
        make_deck(run)


def test_how_far_several_shuffles_lie_apart_is_said_under_the_maps(run):
    found = add_states(run)
    assert pictures.say_controls(found, found.sets) == ""  # one shuffle has no range
    own = found.errors["shuffled0.4"]
    found = replace(found, errors={**found.errors, "shuffled0.16": own, "shuffled1.16": np.roll(own, 1, axis=1)})
    shares = [share_in_own_sector(*found.judged(f"shuffled{turn}.16", NAMES)).value for turn in (0, 1)]
    words = pictures.say_controls(found, found.sets)
    assert "2 shufflings of 16 steps" in words
    assert f"{min(shares):.0%} to {max(shares):.0%} of shirt, coat, dress (chance is 33%)" in words
