"""Methods × seeds × shots: resumed, never run twice, never mixed, compared in pairs."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import gcpl_lab.experiments.compare as comparison
from gcpl_lab.baselines.base import register_baseline
from gcpl_lab.baselines.features import NearestClassMean
from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.readers import read_class_folders
from gcpl_lab.errors import DataError
from gcpl_lab.experiments.compare import AVERAGED, run_comparison
from gcpl_lab.experiments.few_shot import FewShotExperiment
from gcpl_lab.experiments.verdict import merge, write_page
from tests.made_up import SMALL_SETTINGS

METHODS = ["zero_shot_diffusion", "gcpl"]
ONE_TRIAL: dict[str, Any] = {"methods": ["gcpl"], "shots": [1], "seeds": [0]}


class Comparison:
    """Comparisons into one folder, with the lines that they told."""

    def __init__(self, folder: Path, images: Path) -> None:
        self.folder, self.images, self.told = folder, images, list[str]()

    def __call__(self, **changes: Any) -> dict[str, Any]:
        wanted: dict[str, Any] = {"methods": METHODS, "shots": [1, 2], "seeds": [0, 1], "settings": SMALL_SETTINGS}
        wanted |= {"images": self.images, "on_trial": self.told.append, "command": "made here"}
        return run_comparison(self.folder, **(wanted | changes))


@pytest.fixture
def compare(tmp_path: Path, few_shot_folder: Path, monkeypatch: pytest.MonkeyPatch, random_pair: Any) -> Comparison:
    """One loaded pair for all runs here."""
    monkeypatch.setattr(FewShotExperiment, "diffusion", random_pair.diffusion)
    monkeypatch.setattr(FewShotExperiment, "clip", random_pair.clip)
    return Comparison(tmp_path / "runs", few_shot_folder)


def test_every_trial_runs_once_and_only_what_is_missing_is_run(compare: Comparison) -> None:
    few, result = compare(shots=[1], seeds=[0]), compare()
    assert len(compare.told) == len(set(compare.told)) == 8
    assert compare.told[0] == "zero_shot_diffusion, 1 shots, seed 0 (1 of 2)"
    assert all(row in result["methods"] for row in few["methods"])
    assert compare() == result
    assert len(compare.told) == 8
    written = json.loads((compare.folder / "results.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert written == json.loads(json.dumps(result))  # JSON has lists for tuples
    next((compare.folder / "trials").glob("gcpl-2-1-*")).unlink()
    compare()
    assert compare.told[8:] == ["gcpl, 2 shots, seed 1 (8 of 8)"]
    assert "\n## Few images\n" in write_page(merge([result]))  # a comparison alone has its page, too


def test_held_out_images_take_the_place_of_the_test_set(compare: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], FewShotExperiment.run

    def run(self: FewShotExperiment, method: str, shots: int, seed: int) -> Any:
        exemplars = draw_episode(self.support, shots, seed)
        seen.append((set(self.test.images), {self.support.images[index] for index in exemplars}))
        return real(self, method, shots, seed)

    monkeypatch.setattr(FewShotExperiment, "run", run)
    plain = compare()
    tested = set.union(*(judged for judged, _ in seen))
    seen.clear()
    held = compare(shots=[1], held_out=True)
    assert (plain["data"]["held_out"], held["data"]["held_out"]) == (False, True)
    pool = set(read_class_folders(compare.images / "support").images)
    assert len(seen) == 4
    for judged, used in seen:
        assert judged == pool - used
        assert not judged & tested


def test_other_settings_and_other_images_are_other_trials(compare: Comparison, tmp_path: Path) -> None:
    other = shutil.copytree(compare.images, tmp_path / "images")
    shutil.copy(other / "test" / "bag" / "0.png", other / "test" / "bag" / "1.png")
    changes: list[dict[str, Any]] = [
        {"settings": SMALL_SETTINGS | {"num_steps": 1}},
        {"settings": SMALL_SETTINGS | {"num_evidence": 3}},
    ]
    for count, change in enumerate([{}, *changes, {"images": other}], start=1):
        for _ in range(2):
            compare(**ONE_TRIAL, **change)
        assert len(compare.told) == count


def test_what_a_notebook_registered_is_run_in_this_process(compare: Comparison, own_registries: None) -> None:
    """Other processes do not know it, whatever the number of workers."""

    @register_baseline("guess")
    class Guess(NearestClassMean): ...

    result = compare(methods=["guess", "linear_probe"], shots=[1], reference="linear_probe", num_workers=2)
    assert [row["name"] for row in result["methods"]] == ["guess", "linear_probe"] * 2
    assert result["machine"]["side_by_side"] == 1


def test_the_summary_pairs_equal_seeds(compare: Comparison) -> None:
    result = compare()
    expected = [(method, shots) for shots in (1, 2) for method in METHODS]
    assert [(entry["method"], entry["shots"]) for entry in result["summary"]] == expected
    of = {(row["method"], row["shots"], row["seed"]): row for row in result["methods"]}
    for entry in result["summary"]:
        method, shots = entry["method"], entry["shots"]
        pairs = [of[method, shots, s]["accuracy"] - of["gcpl", shots, s]["accuracy"] for s in (0, 1)]
        assert entry["num_seeds"] == 2
        assert entry["difference"] == pytest.approx(sum(pairs) / 2)
        # No families are known of these images, so nothing can be averaged among look-alikes.
        assert entry["accuracy_within_family"] is None
        for name in set(AVERAGED) - {"accuracy_within_family"}:
            assert entry[name] == pytest.approx((of[method, shots, 0][name] + of[method, shots, 1][name]) / 2)


def test_the_summary_says_what_offsets_were_worth(compare: Comparison) -> None:
    methods = ["zero_shot_diffusion", "diffusion_offsets", "gcpl", "linear_probe"]
    result = compare(methods=methods, shots=[2], seeds=[3, 7, 11])
    summary = {entry["method"]: entry for entry in result["summary"]}
    assert {name for name, entry in summary.items() if "offsets" in entry} == {"diffusion_offsets", "gcpl"}
    for method in ("diffusion_offsets", "gcpl"):
        rows = [row for row in result["methods"] if row["method"] == method]
        assert [row["seed"] for row in rows] == [3, 7, 11]
        gains = [row["accuracy"] - row["accuracy_without_offsets"] for row in rows]
        offsets = summary[method]["offsets"]
        assert offsets["difference"] == pytest.approx(sum(gains) / 3)
        assert offsets["low"] <= offsets["difference"] <= offsets["high"]
        assert summary[method]["readings"].keys() == {
            f"{name}{offsets}" for name in ("relative", "absolute", "TiF") for offsets in ("", ", offsets")
        }


def test_results_say_what_they_were_made_of_and_what_cannot_be_compared_is_refused(compare: Comparison) -> None:
    for wrong, message in (
        ({"images": compare.images / "support"}, "support"),
        ({"shots": [4], "held_out": True}, "leave no image to judge on"),
    ):
        with pytest.raises(DataError, match=message):
            compare(**wrong)
    assert not compare.folder.exists()
    result = compare(**ONE_TRIAL | {"methods": ["linear_probe", "gcpl"]})
    assert result["command"] == "made here"
    assert result["data"]["classes"] == ["bag", "boot", "shirt"]
    assert (result["data"]["shots"], result["data"]["test_size"]) == ([1], 12)
    assert result["config"]["num_steps"] == SMALL_SETTINGS["num_steps"]
    assert all({"name", "seed", "accuracy", "denoiser_evaluations"} <= row.keys() for row in result["methods"])


def test_the_bundled_set_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(comparison, "FewShotExperiment", opened)
    with pytest.raises(KeyboardInterrupt):
        run_comparison(tmp_path, methods=METHODS, shots=[1], seeds=[0])
    assert ["fashion" in images.name for images in opened.call_args.args] == [True, True]
