"""The benchmarks run with the smallest settings, check what they claim to check, and write results of one form."""

import importlib
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gcpl_lab.fast.race import Race

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))

Load = Callable[[str], Any]
Run = Callable[..., dict[str, Any]]


def check_form(result: dict[str, Any], name: str, least_repeats: int) -> None:
    """What a program that reads any result relies on."""
    assert result["name"] == name
    assert {"processor", "cores", "threads"} <= result["machine"].keys()
    assert result["repeats"] >= least_repeats
    assert result["rows"]
    for row in result["rows"]:
        assert isinstance(row["what"], str)
        assert all(row[key] >= 0 for key in ("seconds", "spread"))
        assert all(row[key] is None or row[key] > 0 for key in ("ratio_to_published", "ratio_to_floor"))
        assert row.get("evaluations") is None or row["evaluations"] >= 0
    json.dumps(result, allow_nan=False)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """The programs as modules; they import each other as programs in one folder do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def run(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """One program with options, as from the command line; returns what it wrote."""

    def run_program(name: str, options: str) -> dict[str, Any]:
        output = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [name, "--repeats", "1", "--output", str(output), *options.split()])
        load(name).main()
        result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        check_form(result, name, 1)
        return result

    return run_program


def test_variants_take_turns_and_each_begins_a_round(load: Load) -> None:
    measuring, calls = load("measuring"), []
    seconds = measuring.alternate({name: lambda name=name: calls.append(name) for name in "abc"}, 3, warm_ups=0)
    assert "".join(calls) == "abcbcacab"
    assert [len(values) for values in seconds.values()] == [3, 3, 3]
    assert measuring.alternate({"times itself": lambda: 2.5}, 2, warm_ups=1) == {"times itself": [2.5, 2.5]}
    with pytest.raises(ValueError, match="repeats is 0"):
        measuring.alternate({"own": lambda: 2.5}, 0)


def test_rows_hold_medians_spreads_and_the_rounds_ratios(load: Load) -> None:
    make_rows = load("measuring").make_rows
    # The second round was twice as slow for both: ratios within rounds do not see it.
    seconds = {"old": [8.0, 16.0, 8.0], "new": [2.0, 4.0, 2.0], "least": [1.0, 2.0, 1.0], "part": [0.5, 1.0, 0.5]}
    old, new, least, part = make_rows(seconds, published="old", floor="least", evaluations={"new": 40}, parts=("part",))
    assert (new["seconds"], new["spread"], new["evaluations"]) == (2.0, 2.0, 40)
    assert (new["ratio_to_published"], new["ratio_to_floor"]) == (4.0, 2.0)
    assert old["ratio_to_published"] == least["ratio_to_floor"] == 1.0
    assert part["ratio_to_published"] is None
    assert all(row["ratio_to_published"] is None for row in make_rows(seconds))
    assert load("measuring").paired_ratio([2.0, 4.0, 30.0], [1.0, 1.0, 10.0]) == np.median([2.0, 4.0, 3.0])


def test_missed_aims_are_said(load: Load) -> None:
    check_aim, aim_lines = load("measuring").check_aim, load("measuring").aim_lines
    aims = [check_aim("speed", 3.0, least=4), check_aim("share", 0.4, most=0.5), check_aim("none", math.nan, least=1)]
    assert [aim["met"] for aim in aims] == [False, True, False]
    assert ["missed" in line for line in aim_lines({"aims": aims})] == [True, False, True]


def test_a_plan_is_followed_as_a_race_does_it(load: Load) -> None:
    """On known errors: the logits and evaluations of ``Race.classify``, and how a plan's promise is judged."""
    rng, labels = np.random.default_rng(0), np.arange(60) % 3
    errors = rng.normal(10, 1, (60, 3, 6)).astype(np.float32)
    errors[np.arange(60), labels] -= 1.5
    scores = rng.normal(0, 1, (60, 3)) + 2 * np.eye(3)[labels]

    def known_errors(triples: Any, latents: Any, timesteps: Any, noises: Any) -> Any:
        return torch.from_numpy(errors[30:])[triples[:, 0], triples[:, 1], timesteps[triples[:, 2]]]

    def samples(num_samples: int) -> Any:
        return torch.arange(num_samples), torch.arange(num_samples)

    known = SimpleNamespace(seed=0, num_classes=3, samples=samples, errors=known_errors)
    race = Race(known, pool_size=6).plan_from(errors[:30], labels[:30], scores[:30])
    evidence = race.classify(torch.zeros(30, 1), scores[30:])
    prior = scores[30:] - np.log(np.exp(scores[30:]).sum(axis=1, keepdims=True))
    logits, spent = load("measuring").follow(race.plan_, errors[30:], prior)
    np.testing.assert_allclose(logits, evidence.logits)
    assert spent.sum() == evidence.num_evaluations
    found = load("fast_calibration").judge(race.plan_, errors[30:], labels[30:], prior)
    assert 0.7 < found["accuracy"] <= 1
    assert found["evaluations"] == spent.mean() < 3 * found["steps"]
    assert 0 <= found["decided_otherwise"] < 0.3


def test_both_procedures_learn_the_same_prompts(load: Load) -> None:
    module = load("gcpl_train")
    material = module.Bundled.load("tiny", shots=2, num_held_out=1)
    checksum, draws, batch = material.diffusion.checksum(), module.draws_of(material, 1), material.sampler()(0)
    assert len(draws[0].pixels) == len(batch.latents) == 40
    assert torch.equal(draws[0].noise, batch.noise)
    # The images that were taken apart are those of the batch: encoded and disturbed anew they give its latents.
    mean, log_variance = material.diffusion.encode_moments(draws[0].pixels)
    latents = material.diffusion.scale_latents(mean + (0.5 * log_variance).exp() * draws[0].posterior)
    torch.testing.assert_close(latents, batch.latents, rtol=1e-4, atol=1e-4)
    published, ours = module.train_as_published(material, draws), module.train_together(material, 1)
    assert (ours.vectors - material.prompts().vectors).abs().max() > 1e-3
    # An element whose gradient is next to nothing may step either way: AdamW looks at its sign.
    assert torch.isclose(published.vectors, ours.vectors, rtol=0, atol=1e-3).float().mean() > 0.99
    assert material.held_out_loss(published) == pytest.approx(material.held_out_loss(ours), rel=1e-4)
    assert material.diffusion.checksum() == checksum


def test_unequal_losses_stop_the_benchmark(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    module, losses = load("gcpl_train"), iter([1.0, 0.5, 0.6, 0.61])
    material = SimpleNamespace(prompts=lambda: None, held_out_loss=lambda _: next(losses))
    for name in ("train_as_published", "train_together", "draws_of"):
        monkeypatch.setattr(module, name, lambda *_: None)
    with pytest.raises(SystemExit, match=r"0\.500000 and ours at 0\.600000"):
        module.check_equal(material, 1, 2)


@pytest.mark.parametrize(
    ("name", "options", "num_rows", "num_aims"),
    [
        pytest.param("gcpl_train", "--shots 2 --check-steps 2 --steps 1 --seeds 2", 5, 3, marks=pytest.mark.slow),
        ("gcpl_step", "--shape sd-1.x-small --batch-size 2", 8, 5),
        ("true_shapes", "--small --precision bfloat16", 7, 0),
        ("lmpt_epoch", "--steps 1 --num-context 4", 3, 1),
        pytest.param("fast_gains", "--epochs 1", 2, 1, marks=pytest.mark.slow),
        ("startup", "--no-demo", 2, 3),
        pytest.param("scaling", "--only lmpt_epoch", 9, 1, marks=pytest.mark.slow),
    ],
)
def test_programs_run(
    load: Load, run: Run, monkeypatch: pytest.MonkeyPatch, name: str, options: str, num_rows: int, num_aims: int
) -> None:
    """Those that compare procedures stop by themselves where answers differ."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of processes that a program starts
    monkeypatch.setattr(load("scaling"), "MOST_WRONG", 1e9)  # one round on a busy machine may predict badly
    result = run(name, options)
    parts = 2 if name == "lmpt_epoch" and torch.get_num_threads() > 1 else 1  # it measures one thread, too
    assert (len(result["rows"]), len(result.get("aims", []))) == (parts * num_rows, parts * num_aims)
    assert all(row["seconds"] > 0 for row in result["rows"])
    assert any(row.get("peak_gb") for row in result["rows"]) == (name in ("gcpl_step", "true_shapes"))
    assert not result.get("heavy_modules_loaded")


def test_different_answers_stop_the_benchmark(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("fast_gains")
    monkeypatch.setenv("GCPL_LAB_FAST", "1")
    answers = {"0": np.array([1.0, 2.0]), "1": np.array([1.0, 2.1])}

    def work() -> np.ndarray:
        return answers[os.environ["GCPL_LAB_FAST"]]

    with pytest.raises(SystemExit, match=r"answers with and without gcpl_lab/fast differ by 5\.0e-02"):
        module.check_equal(work)
    monkeypatch.setattr(module, "MOST_APART", 0.1)
    assert module.check_equal(work) == pytest.approx(0.05)
    assert os.environ["GCPL_LAB_FAST"] == "1"


def test_classifier_cost_runs(load: Load, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (
        "--train-steps 1 --images 6 --support-images 20 --timed-images 1 --pool 4 --batch-images 2 --spread-seeds 0 "
        f"--published-samples 1 2 --cache {tmp_path / 'kept'}"
    )
    result, module = run("classifier_cost", options), load("classifier_cost")
    spent = {row["what"]: row["evaluations"] for row in result["rows"]}
    assert result["published_images"] == 6
    assert spent[module.PUBLISHED] == 10 * 1 + 5 * 1
    assert max(spent[module.OURS], spent[module.ALONE]) <= 10 * 4
    assert result["plans"].keys() == {module.OURS, module.ALONE}
    assert len(result["aims"]) == 4  # without seeds nothing says which accuracies are equal
    # What was learned and decided is kept: nothing is left to decide, and no prompts are learned again.
    monkeypatch.setattr(load("measuring").GCPLClassifier, "fit", None)
    assert run("classifier_cost", f"{options} --published-seconds 0")["published_images"] == 6


def test_aims_of_the_fast_classifier_by_hand(load: Load) -> None:
    module = load("classifier_cost")
    ours = {"evaluations": 5.0, "evaluations_to_published": 550.0, "ratio_to_published": 400.0, "ratio_to_staged": 3.0}
    rows = {module.OURS: ours, module.STAGED: {"evaluations": 60.0}}
    right = {module.OURS: np.array([1, 1, 0, 0]), module.STAGED: np.array([1, 1, 1, 0])}
    right[module.PUBLISHED] = np.array([1, 1])  # of the images that it has decided
    known = np.array([True, False, True, False])
    found = module.aims_of(rows, right, known, [0.5, 0.6])
    assert [aim["value"] for aim in found] == [550.0, 400.0, 12.0, 3.0, 0.25, 0.5]
    assert [aim["met"] for aim in found] == [True, True, True, False, False, False]
    assert [aim["most"] for aim in found[4:]] == pytest.approx([np.std([0.5, 0.6], ddof=1)] * 2)
    assert len(module.aims_of(rows, right, known, [])) == 4


def test_growth_is_found_again(load: Load) -> None:
    module = load("scaling")
    true = module.Growth(0.3, 0.02, {"classes": 0.8, "images": 1.0}, "updates")
    points = [{"classes": c, "updates": 2, "images": i} for c in (2, 5, 10, 40) for i in (1, 4, 16)]
    assert true.predict(points[0]) == pytest.approx(2 * (0.3 + 0.02 * 2**0.8))
    found = module.fit_growth(points, [true.predict(point) for point in points], "updates")
    unseen = {"classes": 20, "images": 8, "updates": 5}
    assert found.predict(unseen) == pytest.approx(true.predict(unseen), rel=1e-3)
    assert found.exponents == pytest.approx(true.exponents, abs=0.02)
    with pytest.raises(ValueError, match="expected more points"):
        module.fit_growth(points[:3], [1.0, 2.0, 3.0], "updates")


def test_a_prediction_is_compared_with_what_was_kept_out(load: Load) -> None:
    module = load("scaling")
    points = module.grid("classes updates", (2, 3), (4, 3), (8, 3), (16, 3))
    study = module.Study("work", points, {"classes": 6, "updates": 5}, "updates", lambda _: None)
    seconds = {module.describe(point): [3.0 * point["classes"]] for point in points}
    for measured, error in ((30.0, 0.0), (300.0, -0.9)):
        model = module.study_model(study, {**seconds, "6 classes, 5 updates": [measured]})
        assert model["held_out"]["relative_error"] == pytest.approx(error, abs=0.02)
    for real in module.studies("tiny", "wall").values():
        for name, value in real.held_out.items():  # inside the range, and not in the fit
            assert min(point[name] for point in real.points) < value < max(point[name] for point in real.points)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_kept_results_have_the_form(path: Path) -> None:
    check_form(json.loads(path.read_text(encoding="utf-8")), path.stem, 5)


def test_every_benchmark_is_run_and_explained(load: Load) -> None:
    programs, text = load("run_all").PROGRAMS, (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert {path.stem for path in BENCHMARKS.glob("*.py")} - {"measuring", "run_all"} == set(programs)
    assert all(f"`{name}.py`" in text for name in programs)


def test_tables_go_between_the_marks(load: Load, tmp_path: Path) -> None:
    module, page = load("run_all"), tmp_path / "README.md"
    page.write_text("before\n<!-- tables: begin -->\nold\n<!-- tables: end -->\nafter\n")
    row = {"what": "ours", "seconds": 0.5, "spread": 0.1, "ratio_to_published": 4.0, "ratio_to_floor": None}
    machine = {"processor": "a processor", "threads": 2, "cores": 2, "device": "cpu"}
    result = {"name": "gcpl_train", "rows": [row], "machine": machine, "repeats": 5}
    (tmp_path / "gcpl_train.json").write_text(json.dumps(result))
    for _ in range(2):  # filled, and filled again
        module.write_tables(page, tmp_path)
    before, tables, after = re.split("<!-- tables: (?:begin|end) -->", page.read_text())
    assert (before, after, "old" in tables) == ("before\n", "\nafter\n", False)
    assert tables.count("| ours | 0.500 | 0.100 | 4.00 |") == 1
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="put them back"):
        module.write_tables(page, tmp_path)
