"""Methods × seeds × shots: resumed, never run twice, never mixed, compared in pairs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import gcpl_lab.experiments.compare as comparison
from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.readers import read_class_folders
from gcpl_lab.errors import DataError
from gcpl_lab.experiments.compare import AVERAGED, run_comparison
from gcpl_lab.experiments.few_shot import FewShotExperiment

SMALL = {"num_vectors": 2, "num_steps": 2, "batch_size": 4, "num_evidence": 2}
METHODS = ["zero_shot_diffusion", "gcpl"]


@pytest.fixture(autouse=True)
def loaded_models(monkeypatch: pytest.MonkeyPatch, random_pair: Any) -> None:
    """One loaded pair for all runs here."""
    monkeypatch.setattr(FewShotExperiment, "diffusion", random_pair.diffusion)
    monkeypatch.setattr(FewShotExperiment, "clip", random_pair.clip)


def compare(folder: Path, images: Path, told: list[str], **changes: Any) -> dict[str, Any]:
    wanted: dict[str, Any] = {"methods": METHODS, "shots": [1, 2], "seeds": [0, 1], "settings": SMALL} | changes
    return run_comparison(folder, images=images, on_trial=told.append, command="made here", **wanted)


def test_every_trial_runs_once_and_a_rerun_runs_none(tmp_path: Path, few_shot_folder: Path) -> None:
    told: list[str] = []
    result = compare(tmp_path, few_shot_folder, told)
    assert len(told) == len(set(told)) == 8
    assert told[0] == "zero_shot_diffusion, 1 shots, seed 0"
    again = compare(tmp_path, few_shot_folder, told)
    assert len(told) == 8
    assert again == result
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert written == json.loads(json.dumps(result))  # JSON has lists for tuples


def test_held_out_photographs_take_the_place_of_the_test_set(
    tmp_path: Path, few_shot_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[str], set[str]]] = []
    real = FewShotExperiment.run

    def spy(self: FewShotExperiment, method: str, shots: int, seed: int) -> Any:
        exemplars = draw_episode(self.support, shots, seed)
        judged, used = self.test.images, [self.support.images[index] for index in exemplars]
        seen.append(({str(image) for image in judged}, {str(image) for image in used}))
        return real(self, method, shots, seed)

    monkeypatch.setattr(FewShotExperiment, "run", spy)
    told: list[str] = []
    plain = compare(tmp_path, few_shot_folder, told)
    tested = set.union(*(judged for judged, _ in seen))
    seen.clear()
    held = compare(tmp_path, few_shot_folder, told, shots=[1], held_out=True)
    assert (plain["data"]["held_out"], held["data"]["held_out"]) == (False, True)
    pool = {str(image) for image in read_class_folders(few_shot_folder / "support").images}
    assert len(seen) == 4
    for judged, used in seen:
        assert judged == pool - used
        assert not judged & tested


def test_held_out_photographs_must_be_left(tmp_path: Path, few_shot_folder: Path) -> None:
    pool = read_class_folders(few_shot_folder / "support")
    most = int((pool.labels == 0).sum())
    with pytest.raises(DataError, match="leave no photograph to judge on"):
        compare(tmp_path, few_shot_folder, [], shots=[most], held_out=True)


def test_only_what_is_missing_is_run(tmp_path: Path, few_shot_folder: Path) -> None:
    told: list[str] = []
    few = compare(tmp_path, few_shot_folder, told, shots=[1], seeds=[0])
    more = compare(tmp_path, few_shot_folder, told)
    assert len(told) == len(set(told)) == 8
    for row in few["methods"]:
        assert row in more["methods"]
    (next((tmp_path / "trials").glob("gcpl-2-1-*"))).unlink()
    compare(tmp_path, few_shot_folder, told)
    assert told[8:] == ["gcpl, 2 shots, seed 1"]


def test_an_interrupted_comparison_keeps_what_was_finished(
    tmp_path: Path, few_shot_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    real = FewShotExperiment.run

    def interrupted(self: FewShotExperiment, method: str, shots: int, seed: int) -> Any:
        if (method, shots) == ("gcpl", 2):
            raise KeyboardInterrupt
        return real(self, method, shots, seed)

    with monkeypatch.context() as patch:
        patch.setattr(FewShotExperiment, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(tmp_path, few_shot_folder, told)
    assert not (tmp_path / "results.json").exists()
    finished, told = set(told[:-1]), []
    result = compare(tmp_path, few_shot_folder, told)
    assert not finished & set(told)
    assert len(finished) + len(told) == len(result["methods"]) == 8


@pytest.mark.parametrize("change", [{"settings": SMALL | {"num_steps": 1}}, {"settings": SMALL | {"num_evidence": 3}}])
def test_other_settings_are_other_trials(tmp_path: Path, few_shot_folder: Path, change: dict[str, Any]) -> None:
    told: list[str] = []
    for changes in ({}, change, {}):
        compare(tmp_path, few_shot_folder, told, methods=["gcpl"], shots=[1], seeds=[0], **changes)
    assert len(told) == 2


def test_other_pictures_are_other_trials(tmp_path: Path, few_shot_folder: Path) -> None:
    other = tmp_path / "pictures"
    shutil.copytree(few_shot_folder, other)
    shutil.copy(other / "test" / "bag" / "0.png", other / "test" / "bag" / "1.png")
    told: list[str] = []
    for images in (few_shot_folder, other):
        compare(tmp_path / "runs", images, told, methods=["gcpl"], shots=[1], seeds=[0])
    assert len(told) == 2


def test_the_summary_pairs_equal_seeds(tmp_path: Path, few_shot_folder: Path) -> None:
    result = compare(tmp_path, few_shot_folder, [])
    assert [(entry["method"], entry["shots"]) for entry in result["summary"]] == [
        ("zero_shot_diffusion", 1),
        ("gcpl", 1),
        ("zero_shot_diffusion", 2),
        ("gcpl", 2),
    ]
    of = {(row["method"], row["shots"], row["seed"]): row for row in result["methods"]}
    for entry in result["summary"]:
        method, shots = entry["method"], entry["shots"]
        pairs = [of[method, shots, s]["accuracy"] - of["gcpl", shots, s]["accuracy"] for s in (0, 1)]
        assert entry["num_seeds"] == 2
        assert entry["difference"] == pytest.approx(sum(pairs) / 2)
        # No families are known of these pictures, so nothing can be averaged among look-alikes.
        assert entry["accuracy_within_family"] is None
        for name in set(AVERAGED) - {"accuracy_within_family"}:
            assert entry[name] == pytest.approx((of[method, shots, 0][name] + of[method, shots, 1][name]) / 2)


def test_the_summary_says_what_offsets_were_worth(tmp_path: Path, few_shot_folder: Path) -> None:
    methods = ["zero_shot_diffusion", "diffusion_offsets", "gcpl", "linear_probe"]
    result = compare(tmp_path, few_shot_folder, [], methods=methods, shots=[2], seeds=[3, 7, 11])
    summary = {entry["method"]: entry for entry in result["summary"]}
    assert {name for name, entry in summary.items() if "offsets" in entry} == {"diffusion_offsets", "gcpl"}
    for method in ("diffusion_offsets", "gcpl"):
        rows = [row for row in result["methods"] if row["method"] == method]
        assert [row["seed"] for row in rows] == [3, 7, 11]
        gains = [row["accuracy"] - row["accuracy_without_offsets"] for row in rows]
        offsets = summary[method]["offsets"]
        assert offsets["difference"] == pytest.approx(sum(gains) / 3)
        assert offsets["low"] <= offsets["difference"] <= offsets["high"]
        assert summary[method]["readings"].keys() == {"relative", "relative, offsets", "absolute", "absolute, offsets"}


def test_results_say_what_they_were_made_of(tmp_path: Path, few_shot_folder: Path) -> None:
    result = compare(tmp_path, few_shot_folder, [], methods=["linear_probe", "gcpl"], shots=[1], seeds=[0])
    assert result["command"] == "made here"
    assert result["data"]["classes"] == ["bag", "boot", "shirt"]
    assert (result["data"]["shots"], result["data"]["test_size"]) == ([1], 12)
    assert result["config"]["num_steps"] == SMALL["num_steps"]
    probe, gcpl = result["methods"]
    assert probe["separation"] is None
    assert gcpl["separation"]["num_points"] == 12
    assert {"name", "seed", "accuracy", "denoiser_evaluations"} <= gcpl.keys()


def test_pictures_lie_in_support_and_test(tmp_path: Path, few_shot_folder: Path) -> None:
    from gcpl_lab.errors import DataError

    with pytest.raises(DataError, match="support"):
        compare(tmp_path / "runs", few_shot_folder / "support", [])
    assert not (tmp_path / "runs").exists()


def test_the_bundled_set_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []

    class Stop(Exception): ...

    def stop(support: Any, test: Any, **_: Any) -> None:
        names.extend([support.name, test.name])
        raise Stop

    monkeypatch.setattr(comparison, "FewShotExperiment", stop)
    with pytest.raises(Stop):
        run_comparison(tmp_path, methods=METHODS, shots=[1], seeds=[0])
    assert all("fashion" in name for name in names)
