"""Published experiments as files: what to run, the published figure, and the place where ours will stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcpl_lab.errors import ArtifactError
from gcpl_lab.experiments.plan import published_config
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.lmpt.settings import LMPTConfig
from gcpl_lab.models.presets import find_preset, resolve
from gcpl_lab.storage import read_json, write_json

if TYPE_CHECKING:
    from gcpl_lab.data.readers import ImageSet
    from gcpl_lab.gcpl.estimator import GCPLClassifier

FORMAT = "gcpl_lab recipe 1"
METHODS = ("gcpl", "lmpt")


@dataclass(frozen=True)
class Recipe:
    """One published experiment.

    Attributes:
        path: Its file.
        values: Its content.
    """

    path: Path
    values: dict[str, Any]

    @property
    def method(self) -> str:
        """``"gcpl"`` (with CoMPLe) or ``"lmpt"``."""
        return str(self.values["method"])

    def gcpl_config(self, objective: str, num_classes: int, **settings: Any) -> GCPLConfig:
        """Settings of one objective, once the number of classes is known.

        Args:
            objective: One of the recipe's.
            num_classes: Of the data.
            **settings: What to have otherwise.
        """
        values = self.values
        batch = {"batch_size": values["pictures_per_class_and_update"] * num_classes}
        chosen = {**values["settings"], **batch, "objective": objective, "seed": values["seed"], **settings}
        preset = chosen.pop("preset", values["preset"])
        return published_config(preset, num_classes, **chosen)

    def lmpt_config(self, **settings: Any) -> LMPTConfig:
        """Settings of an LMPT recipe.

        Args:
            **settings: What to have otherwise.
        """
        values = self.values
        chosen = {"preset": values["preset"], "seed": values["seed"], **values["settings"], **settings}
        return LMPTConfig.from_dict(chosen)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe and check every setting.

    Raises:
        ArtifactError: The file is no recipe, or a setting is unknown or out of range.
        ModelError: Its preset is unknown.
    """
    path = Path(path)
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT or values.get("method") not in METHODS:
        raise ArtifactError(f"{path}: is no recipe of gcpl_lab; expected the format {FORMAT!r} and a known method")
    recipe = Recipe(path, values)
    find_preset(values["preset"])
    try:
        if recipe.method == "gcpl":
            for objective in values["objectives"]:
                recipe.gcpl_config(objective, 2)
        else:
            recipe.lmpt_config()
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: a setting is missing or wrong ({error})") from error
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
        recipe: What to run.
        data: Where the pictures are: the folder that torchvision keeps the set in, or one with the recipe's layout.
        output: Checkpoints, prompts and results; a rerun goes on.
        most_test: Test pictures at most; the result says so and is then no reproduction.
        settings: What to have otherwise (the preset too); the result lists it.
        shots: Other than the recipe's.
        on_stage: Called with what comes next.

    Returns:
        The content of ``results.json``: the recipe with ``ours`` filled in, what was changed, machine and versions.

    Raises:
        ModelError: The weights are not here; found out before pictures are read.
        DataError: The pictures are not there or not as the recipe expects them.
    """
    from gcpl_lab.training.machine import describe_machine, describe_versions

    changed = dict(settings or {})
    preset = find_preset(str(changed.get("preset", recipe.values["preset"])))
    resolve(preset, "diffusion" if recipe.method == "gcpl" else "clip")
    output, say = Path(output), on_stage or (lambda _text: None)
    if recipe.method == "gcpl":
        found = _run_gcpl(recipe, Path(data), output, most_test, changed, shots, say)
    else:
        found = _run_lmpt(recipe, Path(data), output, most_test, changed, say)
    results = [{**row, "ours": found.get((row["method"], row["metric"]))} for row in recipe.values["results"]]
    for name, value in (("most_test", most_test), ("shots", shots)):
        if value:
            changed[name] = value
    answer = {
        **recipe.values,
        "results": results,
        "changed": changed,
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    write_json(output / "results.json", answer)
    return answer


def _run_gcpl(
    recipe: Recipe,
    data: Path,
    output: Path,
    most_test: int | None,
    changed: dict[str, Any],
    shots: int | None,
    say: Callable[[str], None],
) -> dict[tuple[str, str], float]:
    from gcpl_lab.data.episodes import draw_episode, draw_test
    from gcpl_lab.gcpl.estimator import GCPLClassifier
    from gcpl_lab.workshop.project import read_support_and_test

    seed = int(changed.get("seed", recipe.values["seed"]))
    pool, test = read_support_and_test(data, recipe.values["data"].get("published"))
    support = pool.subset(draw_episode(pool, shots or recipe.values["shots"], seed))
    if most_test and most_test < len(test):
        test = test.subset(draw_test(test, total=most_test, seed=seed))
    found: dict[tuple[str, str], float] = {}
    diffusion, word = None, recipe.values.get("coarse_word")
    coarse_words = [word] * len(pool.class_names) if word else None
    for objective in recipe.values["objectives"]:
        config = recipe.gcpl_config(objective, len(pool.class_names), **changed)
        model = GCPLClassifier(diffusion=diffusion, **config.as_dict())
        say(f"{objective}: learning {len(pool.class_names)} prompts from {len(support)} pictures")
        checkpoint = output / f"{objective}_checkpoint"
        model.fit(
            support.images, support.labels, pool.class_names, coarse_words=coarse_words, checkpoint_folder=checkpoint
        )
        model.save(output / objective)
        diffusion = model.diffusion
        say(f"{objective}: classifying {len(test)} pictures")
        found[objective, "accuracy"] = _staged_accuracy(model, test, recipe.values["classifier"])
    if find_preset(config.preset).clip_source:
        say("zero-shot CLIP")
        found["zero_shot_clip", "accuracy"] = _zero_shot_accuracy(config.preset, test)
    return found


def _zero_shot_accuracy(preset: str, test: ImageSet) -> float:
    from gcpl_lab.baselines.clip_features import ZeroShotCLIP
    from gcpl_lab.data.readers import read_images
    from gcpl_lab.models.clip import FrozenCLIP
    from gcpl_lab.training.device import default_device

    clip = FrozenCLIP.load(preset, device=default_device())
    logits = ZeroShotCLIP(clip, test.class_names).scores(clip.encode_images(read_images(test.images)))
    return _percent(logits.argmax(1).numpy() == test.labels)


def _percent(right: Any) -> float:
    return round(100 * float(right.mean()), 2)


def _staged_accuracy(model: GCPLClassifier, test: ImageSet, schedule: dict[str, Any]) -> float:
    """Accuracy in percent of the published staged classifier under the learned prompts."""
    from gcpl_lab.gcpl.classifier import class_scores

    evidence = model.staged_evidence(
        model.encode(test.images),
        schedule["to_keep"],
        schedule["n_samples"],
        schedule=schedule.get("schedule", "nested"),
        norm=schedule["norm"],
    )
    return _percent(class_scores(evidence.errors, "absolute").argmax(1) == test.labels)


def _run_lmpt(
    recipe: Recipe, data: Path, output: Path, most_test: int | None, changed: dict[str, Any], say: Callable[[str], None]
) -> dict[tuple[str, str], float]:
    from gcpl_lab.data.multilabel import read_longtail_list
    from gcpl_lab.lmpt.estimator import LMPTClassifier

    files = recipe.values["data"]
    labels, images = data / files["labels"], data / files["images"]
    train = read_longtail_list(data / files["train"], labels, images, data / files["captions"])
    test = read_longtail_list(data / files["test"], labels, images)
    if most_test and most_test < len(test):
        test = test.subset(range(most_test))
    model = LMPTClassifier(**recipe.lmpt_config(**changed).as_dict())
    say(f"learning {len(train.class_names)} prompts from {len(train)} pictures")
    checkpoint = output / "lmpt_checkpoint"
    model.fit(train.images, train.targets, train.class_names, train.captions, checkpoint_folder=checkpoint)
    model.save(output / "lmpt")
    say(f"measuring on {len(test)} pictures")
    return {("lmpt", "map"): round(100 * float(model.evaluate(test.images, test.targets)["map"]), 2)}
