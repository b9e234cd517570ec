"""Plans: counts by hand, seconds and memory that follow from the profile, and what the program prints."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gcpl_lab.cli.answers import duration
from gcpl_lab.cli.app import app
from gcpl_lab.errors import ArtifactError, DataError, ModelError
from gcpl_lab.experiments import profile as profiling
from gcpl_lab.experiments.plan import count_updates, make_plan
from gcpl_lab.experiments.profile import LiveBytes, Profile, load_profile, measure_profile
from gcpl_lab.gcpl.classifier import DiffusionClassifier
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.gcpl.settings import GCPLConfig, published_config
from gcpl_lab.models.presets import PRESETS, StepMemory
from tests.made_up import randn

PROFILE = Profile(
    *("tiny", "a machine", "cpu", "made up"),
    encoding_seconds=1.0,
    training_seconds={"float32": 0.5, "bfloat16": 0.25},
    classifying_seconds={"float32": 0.2, "bfloat16": 0.1},
    memory=StepMemory(weights=1000, vae=100, training=60, checkpointed=20, classifying=10),
)
SIZES = {"num_classes": 10, "num_shots": 4, "num_test": 50}
SETTINGS = {"num_steps": 100, "batch_size": 20, "num_evidence": 8, "evidence_bfloat16": False}


def plan(profile: Profile = PROFILE, price_per_hour: float | None = None, **given: Any) -> Any:
    sizes = {name: given.pop(name, value) for name, value in SIZES.items()}
    config = GCPLConfig(**(SETTINGS | given))
    return make_plan("tiny", config=config, profile=profile, price_per_hour=price_per_hour, **sizes)


def savings_of(made: Any) -> dict[str, Any]:
    return {saving.name: saving for saving in made.savings}


FAST = {"classification": "fast", "num_folds": 3, "evidence_pool": 16}


@pytest.mark.parametrize(
    ("settings", "stage", "evaluations", "encoded", "seconds", "memory"),
    [
        # 100 updates of 20; 40 exemplars and their mirror images through the VAE
        ({}, "training", 2000, 80, 2000 * 0.5 + 80, 1000 + 20 * 60),
        # 40 exemplars under 10 prompts, 8 pairs
        ({}, "calibration", 3200, 0, 3200 * 0.2, 1000 + 128 * 10),
        ({}, "classification", 50 * 10 * 8, 50, 4000 * 0.2 + 50, 1000 + 128 * 10),
        # folds that train like the whole, and a pool of 16 pairs
        (FAST, "training", 2000, 80, 2000 * 0.5 + 80, 1000 + 20 * 60),
        (FAST, "calibration", 3200 + 6400 + 3 * 2000, 0, 9600 * 0.2 + 3 * 1000, 1000 + 128 * 10),
    ],
)
def test_stages_by_hand(
    settings: dict[str, Any], stage: str, evaluations: int, encoded: int, seconds: float, memory: int
) -> None:
    found = getattr(plan(**settings), stage)
    assert (found.denoiser_evaluations, found.encoded_pictures, found.memory_bytes) == (evaluations, encoded, memory)
    assert found.seconds == pytest.approx(seconds)


def test_totals_cost_and_what_is_encoded_without_a_cache() -> None:
    made = plan(price_per_hour=7200)
    assert made.seconds == pytest.approx(1080 + 640 + 850)
    assert made.cost == pytest.approx(sum(stage.cost for stage in made.stages)) == pytest.approx(2 * 2570)
    assert (plan().cost, made.memory_bytes) == (None, 1000 + 128 * 10)


def test_an_update_takes_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = replace(PROFILE, update_seconds={"float32": 0.3})
    second = {"discriminative_steps": 10, "discriminative_batch_size": 2, "num_samples": 3, "num_rivals": 1}
    made = plan(profile, objective="discriminative", num_classes=2, **second)
    # 100 updates of 20 evaluations and 10 of 2 · 3 · 2; with two classes every rival is known; 16 images encoded
    assert made.training.seconds == pytest.approx(100 * (0.3 + 20 * 0.5) + 10 * (0.3 + 12 * 0.5) + 16)
    assert count_updates(made.config) == 110
    assert Profile.from_dict(json.loads(json.dumps(asdict(profile)))) == profile
    # Told apart from its images by timing two sizes of batches.
    monkeypatch.setattr(profiling, "_update_seconds", lambda _diffusion, size, *_: 0.25 + 0.5 * size)
    cpu, gpu = (SimpleNamespace(device=torch.device(name)) for name in ("cpu", "cuda"))
    assert profiling._update_model(cpu, 40, 3, "float32") == pytest.approx((0.25, 0.5))
    assert profiling._update_model(cpu, 1, 3, "float32") == (0, 0.75)  # one size tells nothing apart
    monkeypatch.setattr(profiling, "_update_seconds", lambda _diffusion, size, *_: 0.1 * size * size)
    assert profiling._update_model(cpu, 40, 3, "float32") == (0, 4.0)  # no update takes less than nothing
    # A GPU waits for launches until a batch is large: its sizes are 16 and 64, not 2 and 8.
    monkeypatch.setattr(profiling, "_update_seconds", lambda _diffusion, size, *_: max(0.1, 0.03 + 0.0075 * size))
    assert profiling._update_model(gpu, 8, 3, "float32") == pytest.approx((0.03, 0.0075))


@pytest.mark.parametrize(
    ("objective", "classification"),
    [("gcpl", "exact"), ("comple", "exact"), ("discriminative", "exact"), ("gcpl", "fast")],
)
def test_counts_are_those_of_a_real_run(
    diffusion: Any, pictures: tuple[list[Any], Any], objective: str, classification: str
) -> None:
    images, labels = pictures
    few = {"num_steps": 2, "batch_size": 3, "num_evidence": 2, "num_folds": 2, "evidence_pool": 3}
    second = {"discriminative_steps": 1, "discriminative_batch_size": 2, "num_samples": 2, "num_rivals": 1}
    made = plan(num_classes=3, num_test=5, objective=objective, classification=classification, **few, **second)
    model = GCPLClassifier(diffusion=diffusion, **made.config.as_dict())
    before = diffusion.num_denoiser_evaluations
    model.fit(images, labels, ["coat", "bag", "shirt"])
    assert model.train_evaluations_ == made.training.denoiser_evaluations
    spent = diffusion.num_denoiser_evaluations - before
    assert spent == made.training.denoiser_evaluations + made.calibration.denoiser_evaluations
    before = diffusion.num_denoiser_evaluations
    model.predict(images[:5])
    spent, counted = diffusion.num_denoiser_evaluations - before, made.classification.denoiser_evaluations
    assert spent <= counted if classification == "fast" else spent == counted


def test_staged_counts_are_those_of_the_classifier(known_diffusion: Any) -> None:
    classifier = DiffusionClassifier(known_diffusion(), randn(9, 32))
    spent = classifier.staged(randn(3, 2, 4, 4, seed=1), (5, 1), (2, 8)).num_evaluations
    made = plan(num_classes=9, num_test=3)
    others = made.training.denoiser_evaluations + made.calibration.denoiser_evaluations
    assert savings_of(made)["staged"].denoiser_evaluations == others + spent == others + 3 * (9 * 2 + 5 * 6)


def test_savings_say_what_each_would_change() -> None:
    made = plan()
    savings = savings_of(made)
    other = plan(classification="fast")
    assert savings.pop("fast").seconds == other.seconds
    assert other.classification.denoiser_evaluations == 50 * ((10 * 50 + 5 * 450) // 50)  # of the published
    # half the pairs: half of calibration and of classification (encoding stays); checkpointing: one more forward pass
    # an image, and the smaller step
    saved = {
        "staged": 4000 * 0.2 - 50 * (10 * 2 + 5 * 6) * 0.2,
        "fewer_samples": (3200 + 4000) / 2 * 0.2,
        "fewer_updates": 1000 * 0.5,
        "bfloat16": 2000 * 0.25 + 7200 * 0.1,
        "checkpointing": -2000 * 0.2,
        "published_classifier": 4000 * 0.2 - 50 * (10 * 50 + 5 * 450) * 0.2,
    }
    assert {name: saving.saved_seconds for name, saving in savings.items()} == pytest.approx(saved)
    assert savings["bfloat16"].memory_bytes == 500 + 128 * 5
    assert savings["published_classifier"].denoiser_evaluations == 2000 + 3200 + 50 * (10 * 50 + 5 * 450)
    assert all(saving.seconds + saving.saved_seconds == pytest.approx(made.seconds) for saving in made.savings)
    # What is chosen already is no saving.
    chosen = savings_of(plan(gradient_checkpointing=True, precision="bfloat16"))
    assert not chosen.keys() & {"checkpointing", "bfloat16"}
    assert "fast" not in savings_of(other)
    assert "staged" not in savings_of(plan(num_classes=4))


def test_memory_and_dtype_follow_the_settings() -> None:
    assert plan(gradient_checkpointing=True).training.memory_bytes == 1000 + 20 * 20
    assert plan(micro_batch_size=5).training.memory_bytes == 1000 + 5 * 60
    gpu = replace(PROFILE, device="cuda")
    asked = {"auto": "bfloat16", "float16": "bfloat16", "float32": "float32", "tf32": "float32"}
    assert {name: plan(gpu, precision=name).precision for name in asked} == asked
    assert plan().precision == "float32"


def test_the_published_recipe_is_500_updates_of_four_images_a_class() -> None:
    config = published_config("sd-1.4", 196)
    assert (config.num_steps * config.batch_size, config.num_vectors) == (196 * 500 * 4, 1)
    assert published_config("tiny", 10) == GCPLConfig()
    assert published_config("sd-1.4", 5, num_steps=7).num_steps == 7


def test_the_recorded_profiles() -> None:
    found = load_profile("sd-1.4")
    assert (found.training_seconds, found.encoding_seconds) == ({"float32": 11.1, "bfloat16": 4.3}, 5.5)
    assert found.memory == PRESETS["sd-1.4"].memory
    assert any("classifying_seconds" in note for note in found.derived)
    # What was measured as resident: weights, VAE and one step; our count must lie close below.
    counted = found.memory.weights + found.memory.vae + found.memory.training
    assert 0.9 * 6.1e9 < counted < 6.1e9
    assert load_profile("sd-1.5").preset == "sd-1.5"
    with pytest.raises(
        ModelError, match=r"no profile of 'sd-2.1-base' is recorded; recorded ones are sd-1.4, sd-1.4-nvidia-h200, tiny"
    ):
        load_profile("sd-2.1-base")


def test_a_profile_of_another_machine_is_read_from_its_file(tmp_path: Path) -> None:
    """As ``gcpl-lab selftest`` writes one: the plan of the published shape on a machine that is five times as fast."""
    known, path = load_profile("sd-1.4"), tmp_path / "sd-1.4-card.json"
    seconds = {kind: value / 5 for kind, value in known.training_seconds.items()}
    path.write_text(json.dumps(asdict(replace(known, training_seconds=seconds, encoding_seconds=1.1, device="cuda"))))

    def training(*more: str) -> dict[str, Any]:
        words = ["plan", "--preset", "sd-1.4", "--set", "precision=bfloat16", "--json", *more]
        found: dict[str, Any] = json.loads(CliRunner().invoke(app, words).stdout)
        return found

    slow, fast = training("--recorded"), training("--profile", str(path))
    assert fast["stages"][0]["seconds"] == pytest.approx(slow["stages"][0]["seconds"] / 5)
    assert (fast["profile"]["device"], fast["preset"]) == ("cuda", "sd-1.4")
    path.write_text('{"preset": "sd-1.4"}')
    with pytest.raises(ArtifactError, match=r"sd-1.4-card.json: holds no profile \('memory'\)"):
        load_profile(str(path))


def test_wrong_tasks_are_refused() -> None:
    for name, value, least in (("classes", 1, 2), ("shots", 0, 1), ("test", -1, 0)):
        with pytest.raises(DataError, match=f"{name} is {value}; expected a whole number, {least} or more"):
            plan(**{f"num_{name}": value})
    with pytest.raises(ModelError, match="'vit-b-16' is a CLIP alone"):
        make_plan("vit-b-16", **SIZES)


def test_a_profile_measured_here(diffusion: Any) -> None:
    before, checksum = diffusion.num_denoiser_evaluations, diffusion.checksum()
    found = measure_profile(diffusion, batch_size=2, num_steps=1)
    assert found.preset == diffusion.name
    assert found.training_seconds.keys() == found.classifying_seconds.keys() == {"float32", "bfloat16"}
    assert 0 < found.encoding_seconds < 60
    # A line through one timing of each of two sizes: noise may leave nothing of either part, never of the whole.
    for kind, each in found.training_seconds.items():
        assert each >= 0 <= found.update_seconds[kind]
        assert 0 < found.update_seconds[kind] + 2 * each < 60
    weights = sum(4 * p.numel() for part in (diffusion.denoiser, diffusion.text_encoder) for p in part.parameters())
    assert found.memory.weights == pytest.approx(weights, rel=1e-3)
    assert found.memory.classifying < found.memory.checkpointed < found.memory.training
    assert (diffusion.num_denoiser_evaluations, diffusion.checksum()) == (before, checksum)
    assert not diffusion.denoiser.is_gradient_checkpointing


def test_live_bytes_by_hand() -> None:
    """One kilobyte stands, another comes and goes; views and known tensors do not count."""
    known = torch.zeros(256)
    with LiveBytes([known]) as live:
        first = known + 1  # 1024 bytes
        second = first * 2
        view = second.reshape(16, 16)
        assert live.now == 2048
        del second, view
        third = known.view(2, 128)
        assert live.now == 1024
    assert live.peak == 2048
    assert (first.sum(), third.shape) == (256, (2, 128))
    # Of what autograd keeps: exp keeps its result, the product does not.
    weight = torch.ones(64, requires_grad=True)
    with LiveBytes([weight]) as live:
        result = (weight.exp() * 2).sum()
        kept = live.now
        result.backward()
    assert kept == 64 * 4 + 4
    assert live.peak >= 64 * 4 * 2


def test_the_program_answers_people_and_programs(random_pair: Any, tmp_path: Path) -> None:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["plan", "--preset", *map(str, arguments)])

    line = ("sd-1.4", "--classes", 196, "--shots", 16, "--test", 8041, "--recorded")
    answer = json.loads(run(*line, "--price", 2.5, "--json").stdout)
    assert answer["denoiser_evaluations"] == 196 * 2000 + 160 * 196 * 8 + 8041 * 196 * 8
    assert answer["cost"] == pytest.approx(answer["seconds"] / 3600 * 2.5)
    shown = run(*line).stdout
    for fact in ("392,000", "12,608,288", "staged classifier", "6.1 GB resident"):
        assert fact in " ".join(shown.split())
    assert "cost" not in shown.split("together")[0]
    result = run("sd-1.4", "--classes", 2, "--shots", 1, "--test", 1, "--json")
    assert json.loads(result.stdout)["profile"]["machine"] == "two cores of an AMD EPYC, no GPU"
    assert "recorded seconds of another machine" in " ".join(result.stderr.split())
    saved = tmp_path / "profile.json"  # of a folder of models, timed here
    result = run(random_pair.folder, "--classes", 3, "--batch-size", 1, "--save", saved, "--json")
    assert result.exit_code == 0, result.output
    assert Profile.from_dict(json.loads(saved.read_text())).training_seconds["float32"] > 0
    said = {12: "12.0 s", 119: "119.0 s", 210: "3.5 min", 9000: "2.5 h", 864_000: "10 days"}
    assert {seconds: duration(seconds) for seconds in said} == said
