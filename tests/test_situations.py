"""Situations: what each changes and nothing else; their runs, their figures, and the page that decides."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pptx import Presentation

from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.readers import read_class_folders, read_image
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.data.sets import ImageSet
from gcpl_lab.errors import DataError
from gcpl_lab.experiments import situation_runs
from gcpl_lab.experiments.few_shot import FewShotExperiment
from gcpl_lab.experiments.situation_runs import join, run_situations
from gcpl_lab.experiments.situations import SITUATIONS, Case, Draw, mark_corner
from gcpl_lab.experiments.verdict import (
    compare_families,
    compared,
    draw_figures,
    in_order,
    intervals,
    is_generative,
    mean_over,
    merge,
    questions,
    word_for,
    write_page,
    write_situations,
    write_slide,
)
from gcpl_lab.storage import read_json

KEPT = Path(__file__).parents[1] / "docs" / "verdict.json"


@pytest.fixture(scope="module")
def draw() -> Draw:
    return Draw(load_fashion("support"), load_fashion("test"), 16, 3)


def cases_of(draw: Draw, name: str) -> dict[str, Case]:
    return {case.name: case for case in SITUATIONS[name].target(draw)}


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_situation_is_drawn_from_the_seed_and_leaves_classes_whole(draw: Draw, name: str) -> None:
    first, again = cases_of(draw, name), cases_of(draw, name)
    other = cases_of(replace(draw, seed=4), name)
    assert len({case.exemplars.checksum + case.test.checksum for case in first.values()}) == len(first)
    assert any(first[case].exemplars.checksum != other[case].exemplars.checksum for case in first)
    for case in first.values():
        same = again[case.name]
        assert (case.exemplars.checksum, case.test.checksum) == (same.exemplars.checksum, same.test.checksum)
        assert case.exemplars.class_names == case.test.class_names
        for part in (case.exemplars, case.test):
            assert np.bincount(part.labels, minlength=len(part.class_names)).min() >= 1
        assert not set(map(str, case.exemplars.images)) & set(map(str, draw.test.images))
        assert all(len(part) and part.max() < len(case.test) for part in case.levels.values())
    assert set(SITUATIONS[name].facts) == {"varied", "plain"}


def test_few_shots_are_nested(draw: Draw) -> None:
    cases = cases_of(draw, "few_shots")
    images = [set(cases[shots].exemplars.images) for shots in ("1", "2", "4", "8", "16")]
    assert [len(part) for part in images] == [10, 20, 40, 80, 160]
    assert all(small < large for small, large in pairwise(images))


def test_the_mark_is_in_the_corner_as_strong_as_asked() -> None:
    image = np.full((28, 28, 3), 55, np.uint8)
    marked = mark_corner(image, 0.5)
    assert (marked[:4, :4] == 155).all()  # half way from 55 to 255
    marked[:4, :4] = 55
    assert (marked == image).all()
    assert (mark_corner(image, 0.0) == image).all()


def test_a_shortcut_marks_one_class_and_moves_to_a_look_alike(draw: Draw) -> None:
    cases = cases_of(draw, "shortcut")
    plain, strong = cases["0"], cases["1"]
    is_marked = np.array([(read_image(image).getpixel((0, 0)) == (255, 255, 255)) for image in strong.exemplars.images])
    (marked,) = set(strong.exemplars.labels[is_marked])
    assert is_marked.sum() == 16
    gone, moved = strong.levels["mark gone", "1"], strong.levels["mark on a look-alike", "1"]
    assert set(strong.test.labels[gone]) == {marked}
    (other,) = set(strong.test.labels[moved])
    families = [set(members) for members in draw.support.families.values()]
    names = draw.support.class_names
    assert any({names[marked], names[other]} <= family for family in families)
    values = [np.asarray(read_image(strong.test.images[place])) for place in moved]
    assert all((value[:4, :4] == 255).all() for value in values)
    for case in (plain, strong):  # the other judged images are the same files
        assert [case.test.images[place] for place in gone] == [plain.test.images[place] for place in gone]
    with pytest.raises(DataError, match="no family of look-alikes"):
        list(SITUATIONS["shortcut"].target(replace(draw, support=replace(draw.support, families={}))))


def test_wrong_labels_are_as_many_as_asked_and_nested(draw: Draw) -> None:
    cases = cases_of(draw, "label_noise")
    truth, wrong_before = cases["0%"].exemplars.labels, np.zeros(160, bool)
    assert (truth == draw.support.subset(draw_episode(draw.support, 16, 3)).labels).all()
    for share, count in (("10%", 2), ("20%", 3), ("40%", 6)):
        wrong = cases[share].exemplars.labels != truth
        assert np.bincount(truth[wrong], minlength=10).tolist() == [count] * 10
        assert wrong[wrong_before].all()
        wrong_before = wrong


def test_names_change_and_nothing_else(draw: Draw) -> None:
    cases = cases_of(draw, "names")
    own, swapped, letters = (cases[name].exemplars for name in ("own", "swapped", "letters"))
    assert own.class_names == draw.support.class_names
    assert letters.class_names == tuple("ABCDEFGHIJ")
    assert sorted(swapped.class_names) == sorted(own.class_names)
    for members in draw.support.families.values():
        turned = [swapped.class_names[own.class_names.index(name)] for name in members]
        assert sorted(turned) == sorted(members)
        assert len(members) == 1 or all(a != b for a, b in zip(turned, members, strict=True))
    for case in (swapped, letters):
        assert case.images == own.images
        assert (case.labels == own.labels).all()


def test_imbalance_and_one_class_more_by_count(draw: Draw) -> None:
    cases = cases_of(draw, "imbalance")
    sizes = {name: sorted(np.bincount(case.exemplars.labels)) for name, case in cases.items()}
    assert sizes["1"] == [16] * 10
    assert (sizes["4"][0], sizes["4"][-1], sizes["16"][0], sizes["16"][-1]) == (4, 16, 1, 16)
    rare = cases["16"].levels["rarest third", "16:1"]
    counts = np.bincount(cases["16"].exemplars.labels)
    assert len(set(cases["16"].test.labels[rare])) == 3
    assert max(counts[cases["16"].test.labels[rare]]) <= sorted(counts)[2]
    cases = cases_of(draw, "one_class_more")
    assert [len(case.exemplars.class_names) for case in cases.values()] == [9, 10]
    assert cases["with"].exemplars.class_names[:9] == cases["without"].exemplars.class_names
    assert set(cases["with"].test.labels[cases["with"].levels["new class", "with it"]]) == {9}


def test_shifts_are_those_of_the_package(draw: Draw) -> None:
    (case,) = cases_of(draw, "shift").values()
    plain, strong = case.levels["inversion", "0"], case.levels["inversion", "2"]
    before, after = (np.asarray(read_image(case.test.images[part[0]])) for part in (plain, strong))
    assert (case.test.labels[plain] == case.test.labels[strong]).all()
    assert (after == np.where(before >= 128, 255 - before, before)).all()


def test_what_is_set_right_is_the_image_that_was_pale_or_noisy(draw: Draw) -> None:
    cases = cases_of(draw, "remedied")
    assert cases.keys() == {"contrast", "noise"}
    shown = {
        (kind, level): np.stack([np.asarray(read_image(case.test.images[place]), np.float64) for place in places])
        for kind, case in cases.items()
        for (_, level), places in case.levels.items()
    }
    for kind, level in (("contrast", "2"), ("contrast", "4"), ("noise", "2")):
        assert np.abs(shown[kind, level] - shown[kind, "0"]).mean() < {"contrast": 3, "noise": 16}[kind]
    assert all(image.min() == 0 and image.max() >= 254 for image in shown["contrast", "4"])
    # A median of 5 x 5 is the middle one of 25 values; exemplars go through the same.
    image = cases["noise"].exemplars.images[0]
    before = np.asarray(read_image(draw.exemplars().images[0]))[8:13, 8:13, 0]
    assert read_image(image).getpixel((10, 10))[0] == np.median(before)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, few_shot_folder: Path, random_pair: Any) -> None:
    families = {"pair": ("bag", "shirt"), "alone": ("boot",)}

    def load(split: str) -> ImageSet:
        return replace(read_class_folders(few_shot_folder / split), families=families)

    monkeypatch.setattr(situation_runs, "load_fashion", load)
    monkeypatch.setattr(FewShotExperiment, "diffusion", random_pair.diffusion)
    monkeypatch.setattr(FewShotExperiment, "clip", random_pair.clip)


NAMES = ("names", "imbalance")
RUN: dict[str, Any] = {"situations": NAMES, "seeds": [0, 1], "shots": 4, "num_test": 9}
RUN |= {"settings": {"num_steps": 2, "batch_size": 3, "num_evidence": 2, "num_vectors": 2}}


def test_situations_run_once_and_lend_what_is_encoded(small: None, tmp_path: Path) -> None:
    told: list[str] = []
    methods = ["zero_shot_clip", "gda"]
    found = run_situations(tmp_path, methods=methods, on_trial=told.append, **RUN)
    assert set(found["accuracy"]) == set(NAMES)
    again = run_situations(tmp_path, methods=methods, on_trial=told.append, **RUN)
    assert again["accuracy"] == found["accuracy"]
    assert len(told) == len(set(told)) == 2 * 2 * (3 + 3)
    assert read_json(tmp_path / "results.json")["accuracy"] == again["accuracy"]
    level = found["accuracy"]["names"]["all classes"]["own"]
    assert set(level) == set(methods)
    assert set(level["gda"]) == {"0", "1"}
    assert sum(line.startswith("## ") for line in write_situations(merge([found]))) == len(NAMES)
    held = run_situations(tmp_path, methods=["gda"], held_out=True, **RUN | {"seeds": [0], "shots": 2})
    assert held["held_out"]


def test_lent_encodings_are_those_of_the_images(small: None, make_few_shot: Any) -> None:
    whole = make_few_shot()
    judge = situation_runs._Judge(whole, 4, 9, False)
    case, lent = judge._case("one_class_more", 0, "with")
    own = situation_runs.GivenExperiment(case.exemplars, case.test, preset=whole.preset, settings=whole.settings)
    own.diffusion, own.clip = whole.diffusion, whole.clip
    for name in ("views", "test_features", "test_latents"):
        assert name in vars(lent)
        np.testing.assert_allclose(getattr(lent, name), getattr(own, name), atol=1e-5)
    np.testing.assert_allclose(lent._exemplars.means, own._exemplars.means, atol=1e-5)
    assert (lent._exemplars.labels == own._exemplars.labels).all()
    assert "views" not in vars(judge._case("shortcut", 0, "1")[1])  # marked images are encoded themselves


@pytest.mark.parametrize("method", ["discriminative", "gda"])
def test_a_class_more_leaves_prompts_alone_and_counts_moved_decisions(
    small: None, make_few_shot: Any, method: str
) -> None:
    settings = RUN["settings"] | {"discriminative_steps": 2, "discriminative_batch_size": 2, "num_samples": 2}
    judge = situation_runs._Judge(make_few_shot(**settings), 4, 9, False)
    row = judge(situation_runs.SituationTrial(method, 4, 0, "one_class_more", "with"))
    (before, old), (after, new) = (judge._case("one_class_more", 0, name) for name in ("without", "with"))
    earlier, later = old.run(method, 4, 0), new.run(method, 4, 0)
    if method == "discriminative":
        assert earlier.model is not None
        assert later.model is not None
        assert torch.equal(later.model.prompts_.vectors[:2], earlier.model.prompts_.vectors)
        assert not torch.equal(later.model.prompts_.vectors[2], later.model.states_[0][2])
    known = after.levels["old classes", "with it"]
    assert [after.test.images[place] for place in known] == list(before.test.images)
    stayed = (later.scores[known].argmax(1) == earlier.scores.argmax(1)).mean()  # the new class is the last
    assert row["accuracy"][-1] == ["old decisions that stay", "with it", pytest.approx(stayed)]


def test_joined_by_hand() -> None:
    labels = [0, 1, 0, 1]
    sure, other = [[0.9, 0.1], [0.4, 0.6], [0.4, 0.6], [0.6, 0.4]], [[0.4, 0.6], [0.4, 0.6], [0.8, 0.2], [0.6, 0.4]]
    rows = [{seed: {"labels": labels, "chances": chances} for seed in (0, 1)} for chances in (sure, other)]
    found = join("a", "b", *rows)
    assert found["accuracy"] == 0.75  # the surer of the two decides images 1 and 3
    assert found["alone"] == [0.5, 0.5]
    assert found["oracle"] == 0.75
    assert found["gain"]["difference"] == 0.25
    assert found["correlation"] == 0.0


def test_families_are_compared_on_the_draws_that_all_have() -> None:
    values = {
        "linear_probe": {"0": 0.70, "1": 0.72, "2": 0.70, "3": 0.6},
        "gda": {"0": 0.60, "1": 0.60, "2": 0.60, "3": 0.7},
        "gcpl": {"0": 0.80, "1": 0.81, "2": 0.81},
        "comple": {"0": 0.99},  # on too few draws
    }
    found = compare_families(values)
    assert found is not None
    assert (found["ours"], found["theirs"], found["num_seeds"], found["word"]) == ("gcpl", "linear_probe", 3, "ahead")
    assert found["difference"] == pytest.approx(0.1)
    assert compare_families({"gda": {"0": 0.5}}) is None
    bounds = [(0.01, 0.1, "ahead"), (-0.1, -0.01, "behind"), (-0.04, 0.04, "level"), (-0.1, 0.01, "open")]
    bounds.append((None, None, "open"))
    assert [word_for({"low": low, "high": high}) for low, high, _ in bounds] == [word for *_, word in bounds]
    levels = [{"a": {"0": 0.2, "1": 0.4}, "b": {"0": 1.0}}, {"a": {"0": 0.4}}]
    assert mean_over(levels) == {"a": {"0": pytest.approx(0.3)}}


def test_levels_stand_by_number_where_they_have_one() -> None:
    assert list(in_order({"16": 0, "1": 0, "4": 0})) == ["1", "4", "16"]
    assert list(in_order({"0.5": 0, "0": 0, "40 %": 0})) == ["0", "0.5", "40 %"]
    assert list(in_order({"own": 0, "letters": 0})) == ["own", "letters"]


def test_results_are_merged_and_pages_and_figures_written(small: None, tmp_path: Path) -> None:
    results = [run_situations(tmp_path / m, methods=[m], **RUN) for m in ("gda", "zero_shot_diffusion")]
    kept = merge(results)
    page = write_page(kept)
    assert "| Imbalance: rarest third | Zero-shot diffusion," in page
    decided = ["Who wins?", "Do generative prompts pay?"]
    assert re.findall("\n## (.*)", page) == [*decided, "Wrong names, no names", "Imbalance"]
    paths = draw_figures(kept, tmp_path / "figures")
    assert {path.stem for path in paths} == {*NAMES, "verdict"}
    assert all(Image.open(path).size[0] > 600 for path in paths if path.suffix == ".png")
    (slide,) = Presentation(str(write_slide(kept, tmp_path / "verdict.pptx")[0])).slides
    decided = [found for *_, found in compared(kept, is_generative) if found["low"] is not None]
    assert f"of {len(decided)} questions" in slide.shapes.title.text
    again = merge([kept, results[0]], [("tails", {"reference": "lmpt", "command": "x", "summary": {}})])
    assert again["accuracy"] == kept["accuracy"]  # what is kept is gone on from
    assert merge([again])["lmpt"] == again["lmpt"]
    # A page keeps its pairs, however many; of a pair that was joined twice the run with more draws counts.
    pairs = [{"methods": [f"m{k}", "gcpl"], "num_seeds": 10} for k in range(9)]
    once_more = {**results[0], "joined": [{"methods": ["gcpl", "m3"], "num_seeds": 2}]}
    assert sorted(merge([{**kept, "joined": pairs}, once_more])["joined"], key=str) == pairs
    found = {"method": "lmpt", "mean": 0.57, "standard_deviation": 0.01, "difference": 0.003}
    found |= {"low": -0.01, "high": 0.02}
    told = [
        (part, {"command": part, "reference": of, "summary": {"map": [found]}})
        for part, of in (("tails", "linear_probe"), ("parts", "coop_bce"))
    ]
    first = write_page(merge([kept], told)).splitlines()[2]
    assert "LMPT against “Linear probe”: level, +0.3 (−1.0 to +2.0); against “CoOp + BCE" in first
    with pytest.raises(DataError, match=r"results differ in num_test \(8 and 9\)"):
        merge([results[0], results[1] | {"num_test": 8}])


@pytest.mark.skipif(not KEPT.is_file(), reason="no verdict is kept")
def test_the_page_is_made_of_what_is_kept(tmp_path: Path) -> None:
    assert write_page(read_json(KEPT)) == KEPT.with_suffix(".md").read_text(encoding="utf-8")
    assert write_slide(read_json(KEPT), tmp_path / "verdict.pptx")  # its words have room


def test_what_a_situation_takes_is_counted_within_draws() -> None:
    plain = {"gda": {"0": 0.9, "1": 0.5}, "zero_shot_clip": {"0": 0.3, "1": 0.3}, "gcpl": {"0": 0.8}}
    marked = {"gda": {"0": 0.8, "1": 0.4}, "zero_shot_clip": {"0": 0.3, "1": 0.3}, "gcpl": {"0": 0.8, "1": 0.2}}
    (label, changed), (_, lost) = questions("shortcut", "mark gone", {"0": plain, "0.5": marked, "1": marked})
    assert label == "mark gone"
    assert changed["gda"] == {"0": pytest.approx(0.8), "1": pytest.approx(0.4)}
    assert lost == {"gda": {"0": pytest.approx(-0.1), "1": pytest.approx(-0.1)}, "gcpl": {"0": pytest.approx(0.0)}}
    # Two methods that rise and fall with the draw have no spread of their own.
    of = {"a": {"0": 0.5, "1": 0.7, "2": 0.9}, "b": {"0": 0.4, "1": 0.6, "2": 0.8}}
    points = intervals({"x": of})["x"]
    assert points["a"] == pytest.approx((0.7, 0.7, 0.7))
    assert points["b"] == pytest.approx((0.6, 0.6, 0.6))
