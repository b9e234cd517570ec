"""Published experiments as files: what to run, the published figure, and the place where ours will stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcpl_lab.baselines.zero_shot import ZeroShotCLIP
from gcpl_lab.data.episodes import draw_episode, draw_test
from gcpl_lab.data.folders import read_support_and_test
from gcpl_lab.data.lists import read_longtail_list
from gcpl_lab.data.readers import iter_images
from gcpl_lab.errors import ArtifactError, explain
from gcpl_lab.evaluation.metrics import accuracy
from gcpl_lab.gcpl.calibration import class_scores
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.gcpl.settings import GCPLConfig, published_config
from gcpl_lab.lmpt.estimator import LMPTClassifier
from gcpl_lab.lmpt.settings import LMPTConfig
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.presets import PRESETS, find_preset, resolve
from gcpl_lab.storage import read_json, write_json
from gcpl_lab.training.device import default_device
from gcpl_lab.training.machine import describe_machine, describe_versions

FORMAT = "gcpl_lab recipe 1"
PREPROCESSING = {"fit": "crop", "flip": True}
"""Of the authors."""
Found = dict[tuple[str, str], float]
"""Shares by method and metric."""


@dataclass(frozen=True)
class Recipe:
    """One published experiment: its file and what is in it."""

    path: Path
    values: dict[str, Any]

    @property
    def method(self) -> str:
        """``"gcpl"`` (with CoMPLe) or ``"lmpt"``."""
        return str(self.values["method"])

    def gcpl_config(self, objective: str, num_classes: int, **settings: Any) -> GCPLConfig:
        """Settings of one objective on data with so many classes; ``settings`` is what to have otherwise."""
        values = self.values
        batch_size = values["pictures_per_class_and_update"] * num_classes
        own = {"batch_size": batch_size, "objective": objective, "seed": values["seed"]}
        chosen = {**PREPROCESSING, **values["settings"], **own, **settings}
        preset = chosen.pop("preset", values["preset"])
        return published_config(preset, num_classes, **chosen)

    def lmpt_config(self, **settings: Any) -> LMPTConfig:
        """Settings of an LMPT recipe; ``settings`` is what to have otherwise."""
        values = self.values
        chosen = {"preset": values["preset"], "seed": values["seed"]} | PREPROCESSING | values["settings"] | settings
        return LMPTConfig.from_dict(chosen)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe and check every setting.

    Raises:
        ArtifactError: The file is no recipe, or a setting or its preset is unknown or out of range.
    """
    path = Path(path)
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT or values.get("method") not in ("gcpl", "lmpt"):
        raise ArtifactError(f"{path}: is no recipe of gcpl_lab; expected the format {FORMAT!r} and a known method")
    recipe = Recipe(path, values)
    if values.get("preset") not in PRESETS:
        raise ArtifactError(
            f"{path}: names the models {values.get('preset')!r}; expected one of {', '.join(PRESETS)}. A folder of "
            "models is given when it is run: --set preset=FOLDER"
        )
    try:
        if recipe.method == "gcpl":
            for objective in values["objectives"]:
                recipe.gcpl_config(objective, 2)
        else:
            recipe.lmpt_config()
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: a setting is missing or wrong ({explain(error)})") from error
    return recipe


def run_recipe(
    recipe: Recipe,
    data: str | Path,
    output: str | Path,
    *,
    most_test: int | None = None,
    settings: dict[str, Any] | None = None,
    shots: int | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run a recipe and write ``results.json`` with our figure beside the published one.

    Args:
        data: Where the images are: the folder that torchvision keeps the set in, or one with the recipe's layout.
        output: Checkpoints, prompts and results; a rerun goes on.
        most_test: Test images at most; the result says so and is then no reproduction.
        settings: What to have otherwise (the preset too); the result lists it.
        shots: Other than the recipe's.
        on_stage: Called with what comes next.

    Returns:
        The content of ``results.json``: the recipe with ``ours`` filled in, what was changed, machine and versions.

    Raises:
        ModelError: The weights are not here; found out before images are read.
        DataError: The images are not there or not as the recipe expects them.
    """
    changed, say = dict(settings or {}), on_stage or (lambda _text: None)
    preset = find_preset(str(changed.get("preset", recipe.values["preset"])))
    resolve(preset, "diffusion" if recipe.method == "gcpl" else "clip")
    if recipe.method == "gcpl":
        found = _run_gcpl(recipe, Path(data), Path(output), most_test, changed, shots or recipe.values["shots"], say)
    else:
        found = _run_lmpt(recipe, Path(data), Path(output), most_test, changed, say)
    percent = {measured: round(100 * share, 2) for measured, share in found.items()}
    results = [{**row, "ours": percent.get((row["method"], row["metric"]))} for row in recipe.values["results"]]
    changed |= {name: value for name, value in (("most_test", most_test), ("shots", shots)) if value}
    made = {"machine": describe_machine(), "versions": describe_versions()}
    answer = {**recipe.values, "results": results, "changed": changed, **made}
    write_json(Path(output) / "results.json", answer)
    return answer


def _run_gcpl(
    recipe: Recipe,
    data: Path,
    output: Path,
    most_test: int | None,
    changed: dict[str, Any],
    shots: int,
    say: Callable[[str], None],
) -> Found:
    """Every objective's prompts under the published staged classifier, and zero-shot CLIP."""
    values, found, diffusion = recipe.values, {}, None
    seed = int(changed.get("seed", values["seed"]))
    pool, test = read_support_and_test(data, values["data"].get("published"))
    support, names = pool.subset(draw_episode(pool, shots, seed)), pool.class_names
    if most_test and most_test < len(test):
        test = test.subset(draw_test(test, total=most_test, seed=seed))
    words = [values["coarse_word"]] * len(names) if values.get("coarse_word") else None
    for objective in values["objectives"]:
        config = recipe.gcpl_config(objective, len(names), **changed)
        model = GCPLClassifier(diffusion=diffusion, **config.as_dict())
        say(f"{objective}: learning {len(names)} prompts from {len(support)} images")
        folder = output / f"{objective}_checkpoint"
        model.fit(support.images, support.labels, names, coarse_words=words, checkpoint_folder=folder)
        model.save(output / objective)
        diffusion = model.diffusion
        say(f"{objective}: classifying {len(test)} images")
        evidence = model.staged_evidence(model.encode(test.images), **values["classifier"])
        found[objective, "accuracy"] = accuracy(class_scores(evidence.errors, "absolute"), test.labels)
    if find_preset(config.preset).clip_source:
        say("zero-shot CLIP")
        clip = FrozenCLIP.load(config.preset, device=default_device())
        logits = ZeroShotCLIP(clip, test.class_names).scores(clip.encode_images(iter_images(test.images, "crop")))
        found["zero_shot_clip", "accuracy"] = accuracy(logits.numpy(), test.labels)
    return found


def _run_lmpt(
    recipe: Recipe, data: Path, output: Path, most_test: int | None, changed: dict[str, Any], say: Callable[[str], None]
) -> Found:
    files = recipe.values["data"]
    labels, images = data / files["labels"], data / files["images"]
    train = read_longtail_list(data / files["train"], labels, images, data / files["captions"])
    test = read_longtail_list(data / files["test"], labels, images)
    if most_test and most_test < len(test):
        test = test.subset(range(most_test))
    model = LMPTClassifier(**recipe.lmpt_config(**changed).as_dict())
    say(f"learning {len(train.class_names)} prompts from {len(train)} images")
    folder = output / "lmpt_checkpoint"
    model.fit(train.images, train.targets, train.class_names, train.captions, checkpoint_folder=folder)
    model.save(output / "lmpt")
    say(f"measuring on {len(test)} images")
    return {("lmpt", "map"): float(model.evaluate(test.images, test.targets)["map"])}
