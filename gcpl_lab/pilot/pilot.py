"""A pilot on own images: runs, resumes, decides, and watches what comes in afterwards."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import linregress
from scipy.stats import t as student_t

from gcpl_lab.data.sets import MultiLabelSet
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.evaluation import costs as money
from gcpl_lab.evaluation.captions import check_captions, read_words
from gcpl_lab.evaluation.fit_of_models import fit_of_models
from gcpl_lab.evaluation.metrics import confusion_matrix
from gcpl_lab.evaluation.monitoring import find_drift
from gcpl_lab.evaluation.multilabel import map_with_interval, mean_average_precision
from gcpl_lab.evaluation.novelty import measure_novelty
from gcpl_lab.evaluation.prediction_sets import mean_with_interval, measure_coverage, predict_sets, smallest_error_rate
from gcpl_lab.evaluation.trust import share_of, share_with_interval
from gcpl_lab.experiments.registry import METHODS, MULTILABEL_METHODS, usable_workers
from gcpl_lab.pilot.config import PilotConfig, read_config, write_config
from gcpl_lab.pilot.data import PilotData, find_kind, rarest_labels, read_data, read_labels, targets_of
from gcpl_lab.pilot.explain import add_corrections, compare_teaching, draw_evidence, explain_error
from gcpl_lab.pilot.images import check_images
from gcpl_lab.pilot.page import draw_png, render, write_pages
from gcpl_lab.pilot.sense import check_samples
from gcpl_lab.pilot.trials import Judge, Trials, check_methods, is_simple, make_experiment, run_pilot_trials
from gcpl_lab.pilot.verdict import broken_promises, decide, plan_trial
from gcpl_lab.pilot.watch import LOG, simulate_months, take_in
from gcpl_lab.storage import read_json, write_atomically, write_json, write_text
from gcpl_lab.training.machine import describe_machine, describe_versions
from gcpl_lab.views.pilot import draw_watch
from gcpl_lab.views.widgets.review import SampleReviewer, read_review

FORMAT, RESULTS, REVIEW = "gcpl_lab pilot 3", "pilot.json", "samples_review.csv"
NUM_SPLITS = 50
"""New divisions of calibration and test images that a promise is measured over."""


class Pilot:
    """A folder with ``pilot.toml``, everything that was measured, and the pages that say it.

    Example:
        >>> Pilot.create("runs/pilot", "my_images")
        >>> found = Pilot("runs/pilot").run()
        >>> found["verdict"]["sentence"]

    Args:
        folder: Holds ``pilot.toml``.
        **changes: Settings in the place of the file's, for a notebook.
    """

    def __init__(self, folder: str | Path, **changes: Any) -> None:
        self.folder = Path(folder)
        self.config: PilotConfig = read_config(self.folder, changes)
        self._single = self.config.kind == "classes"

    @classmethod
    def create(cls, folder: str | Path, images: str | Path, preset: str = "tiny") -> Pilot:
        """Write ``pilot.toml`` for a folder of images (or ``bundled:fashion`` and the like); an existing one stays."""
        where = str(images)
        if not where.startswith(("bundled:", "published:")):
            if not Path(where).is_dir():
                raise DataError(f"{where}: no such folder; expected class folders, or images with a metadata.csv")
            where = str(Path(where).resolve())
        write_config(Path(folder), where, find_kind(where), preset)
        return cls(folder)

    @cached_property
    def data(self) -> PilotData:
        """The images in three parts."""
        return read_data(self.config, self.folder)

    @cached_property
    def words(self) -> dict[str, list[str]]:
        """The trade's words for each class."""
        return read_words(self.folder / self.config.words if self.config.words else None, self.data.class_names)

    @cached_property
    def _experiment(self) -> Trials:
        return make_experiment(self.config, self.data, self.words)

    @cached_property
    def _targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Of calibration and of test images."""
        return targets_of(self.data.calibration), targets_of(self.data.test)

    @property
    def results(self) -> dict[str, Any]:
        """The content of ``pilot.json``; ArtifactError where there is none, or one of another version."""
        found: dict[str, Any] = read_json(self.folder / RESULTS)
        changed = [name for name, value in self.config.as_dict().items() if found.get("config", {}).get(name) != value]
        if found.get("format") != FORMAT:
            changed = [f"the format ({found.get('format')!r}, expected {FORMAT!r})"]
        elif found["checksums"]["images"] != self.data.checksum:
            changed.append("its images")
        if changed:
            raise ArtifactError(f"{self.folder}: {', '.join(changed)} changed since the pilot ran; run it again")
        return found

    def run(
        self, on_event: Callable[[str], None] | None = None, num_workers: int = 1, command: str = ""
    ) -> dict[str, Any]:
        """Everything that has not been measured yet, then ``pilot.json``, ``pilot.html``, ``card.md`` and a deck.

        Killed at any moment it goes on where it was: every method's answers and every other piece of work is kept.

        Args:
            on_event: Told by a line of what comes next.
            num_workers: Draws that are worked on side by side.
            command: What is written down as having made the results.

        Returns:
            The content of ``pilot.json``.
        """
        tell, config, data = on_event or (lambda _line: None), self.config, self.data
        check_methods(config)
        tell("looking at the images")
        found: dict[str, Any] = {"format": FORMAT, "command": command, "config": config.as_dict()}
        found |= {"class_names": list(data.class_names), "images": self._stage("images", lambda: check_images(data))}
        found |= {"captions": None, "samples": None, "corrections": data.num_corrections}
        if isinstance(data.pool, MultiLabelSet) and any(data.pool.captions):
            found["captions"] = check_captions(data.pool, self.words, self.folder / "metadata_corrected.csv")
        found["fit_of_models"] = self._stage("fit_of_models", self._measure_fit)
        rows = run_pilot_trials(config, self._experiment, self.folder, usable_workers(num_workers), tell)
        tell("thresholds, sets and costs")
        found["methods"] = self._compare(rows)
        ways = {method: self._make_way(method, rows) for method in config.method_names}
        simple = [name for name in ways if is_simple(name, config.kind)]
        taken, rival = (min(names, key=lambda name: ways[name].spent) for names in (ways, simple))
        found |= self._measure_taken(ways[taken], ways[rival])
        learned, way = [name for name in ways if name not in simple], ways[taken]
        if config.generated and learned and self._single:
            tell("generated samples")
            maker, folder, seed = learned[0], self.folder, config.seed
            found["samples"] = self._stage("samples", lambda: check_samples(maker, way, data, folder, seed))
        tell("simulated months, and what corrections teach")
        found["watch"] = self._stage("watch", lambda: simulate_months(way, data, config.seed))
        found["teaching"] = self._stage("teaching", lambda: compare_teaching(way, data, config.seed))
        found["verdict"] = decide(config, found)
        shares = [found[name]["accuracy"]["value"] for name in ("chosen", "simple_chosen")]
        found["trial"] = plan_trial(shares[0], shares[1], config.images_a_month)
        said = np.array([row["decision"] == "accept" for row in read_review(self.folder / REVIEW).values()])
        found["reviewed_samples"] = share_of(said) | {"n": len(said)} if len(said) else None
        found |= {"versions": describe_versions(), "machine": describe_machine()}
        found["checksums"] = {"images": data.checksum, "configuration": _key(config.as_dict())}
        self._stage("calibration", lambda: {name: rows.tolist() for name, rows in way.answers[0].items()})
        write_json(self.folder / RESULTS, found)
        tell("page, card and deck")
        write_pages(self.folder, found, data)
        return found

    def _stage(self, name: str, compute: Callable[[], Any]) -> Any:
        """A piece of work that is done once for these images and settings."""
        path = self.folder / "stages" / f"{name}.json"
        key = _key([self.config.as_dict(), self.data.checksum, FORMAT])
        if path.is_file() and (kept := read_json(path)).get("key") == key:
            return kept["value"]
        value = compute()
        write_json(path, {"key": key, "value": value})
        return value

    def _measure_fit(self) -> dict[str, Any]:
        """Of one class an image; with several labels each image counts for its rarest one."""
        targets, names = targets_of(self.data.pool), self.data.class_names
        kept = np.flatnonzero(targets.any(axis=1))
        images = [self.data.pool.images[place] for place in kept]
        return fit_of_models(images, rarest_labels(targets)[kept], names, preset=self.config.preset).as_dict()

    def _compare(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Each method: quality over draws with all exemplars, seconds, and its curve over fewer, the best first.

        ``doubling`` is what twice the images bring, the slope over log2 with its interval, from ``num_points`` rows.
        """
        found, most, test = [], max(row["shots"] for row in rows), self._targets[1]
        for method in self.config.method_names:
            same = [row for row in rows if row["method"] == method]
            chances = [np.array(row["probabilities"])[-len(test) :] for row in same]
            values = np.array([self._quality(each) for each in chances])
            shots = np.array([row["shots"] for row in same])
            entry = {**self._about(method), "num_points": len(same)}
            points = [{"shots": int(size), **_interval(values[shots == size])} for size in np.unique(shots)]
            entry |= {"points": points, "quality": _interval(values[shots == most]), "doubling": None}
            for name in ("train_seconds", "predict_seconds"):
                entry[name] = float(np.mean([row[name] for row in same if row["shots"] == most]))
            if len(points) > 1:
                line = linregress(np.log2(shots), values)
                # scipy divides 0 by 0 where all values are the same.
                reach = student_t.ppf(0.975, len(same) - 2) * (line.stderr if np.ptp(values) else 0.0)
                ends = (line.slope, line.slope - reach, line.slope + reach)
                entry["doubling"] = dict(zip(("value", "low", "high"), map(float, ends), strict=True))
            found.append(entry)
        return sorted(found, key=lambda entry: -entry["quality"]["value"])

    def _quality(self, chances: np.ndarray) -> float:
        """Accuracy or mean average precision on the test images."""
        test = self._targets[1]
        if self._single:
            return float((chances.argmax(axis=1) == test.argmax(axis=1)).mean())
        return mean_average_precision(chances, test)

    def _about(self, method: str) -> dict[str, Any]:
        title = (METHODS if self._single else MULTILABEL_METHODS).titles()[method]
        simple = is_simple(method, self.config.kind)
        return {"method": method, "title": title, "simple": simple, "num_images": len(self.data.test)}

    def judge(self, method: str) -> Judge:
        """A method of draw 0 that can be asked about other images."""
        return Judge(method, self.config.shots, self._experiment, self.folder)

    def _make_way(self, method: str, rows: Sequence[dict[str, Any]]) -> Judge:
        """A method with its answers on calibration and test images, and the threshold that is cheapest on the first."""
        judge, wanted, most = self.judge(method), self._targets[0], max(row["shots"] for row in rows)
        row = next(row for row in rows if (row["method"], row["seed"], row["shots"]) == (method, 0, most))
        features = self._experiment.test_features
        whole = {"features": features.numpy().round(4), "distances": judge.distances(features)}
        whole |= {name: np.array(row[name]) for name in ("probabilities", "errors") if name in row}
        places = slice(len(wanted)), slice(len(wanted), None)
        judge.answers = [{name: values[part] for name, values in whole.items()} for part in places]
        judge.costs = self._costs(row["predict_seconds"] / len(features))
        judge.limit, judge.spent = money.choose_threshold(
            *judge.decide(0), wanted, judge.costs, self.config.most_reviewed
        )
        return judge

    def _costs(self, seconds_an_image: float = 0.0) -> money.Costs:
        name = self.config.normal_class
        return self.config.costs(seconds_an_image, self.data.class_names.index(name) if name else None)

    def _measure_taken(self, ours: Judge, rival: Judge) -> dict[str, Any]:
        """The method with the least cost on calibration images, and the best simple one, measured on test images."""
        wanted, test = self._targets
        found: dict[str, Any] = {}
        for key, way in (("chosen", ours), ("simple_chosen", rival)):
            found[key] = {**self._about(way.method), "accuracy": self._accuracy(way), "certainty_limit": way.limit}
        found["processes"] = processes = self._processes(ours, rival)
        found["cost"] = {process["name"]: process["cost"] for process in processes}
        found["break_even"] = {
            other["name"]: money.break_even(processes[0], other, ours.costs, self.config.set_up)
            for other in processes[2:]
        }
        sure, said = ours.decide(1)
        found["reviews"], found["wholly_right"] = share_of(sure < ours.limit), share_of((said == test).all(axis=1))
        found["coverage"] = self._coverage(*(part["probabilities"] for part in ours.answers))
        found["none_of_these"] = None  # with several labels, or two classes, nothing can be left out
        labels = wanted.argmax(axis=1), test.argmax(axis=1)
        if self._single and test.shape[1] > 2:
            parts = (ours.answers[0], labels[0], ours.answers[1], labels[1])
            found["none_of_these"] = measure_novelty(*parts, self.config.most_refused)
        if self._single:
            matrix = confusion_matrix(ours.answers[1]["probabilities"], labels[1])
            weighted = money.weighted_confusion(matrix, ours.costs)
            found["confusion"] = {"counts": matrix.tolist(), "cost": weighted.tolist()}
        return found

    def _accuracy(self, way: Judge) -> dict[str, float]:
        """Of draw 0 on the test images, with its interval over images."""
        test = self._targets[1]
        if self._single:
            return share_of(way.decide(1)[1][test == 1])
        return map_with_interval(way.answers[1]["probabilities"], test)._asdict()

    def _processes(self, ours: Judge, rival: Judge) -> list[dict[str, Any]]:
        """Ours and, where it is another, the best simple method, with and without reviews; people alone; nobody."""
        wanted, test = self._targets
        nothing, people = np.zeros_like(test), self._costs()
        if self._single:  # whatever comes in is taken for the normal class, or for the most frequent one
            nothing[:, wanted.sum(axis=0).argmax() if people.normal is None else people.normal] = 1
        rows: dict[str, tuple[Any, ...]] = {}
        for name, way in (("taken", ours), *([("best simple", rival)] if rival is not ours else [])):
            sure, said = way.decide(1)
            rows[f"{name}, with reviews"] = said, way.costs, sure < way.limit
            rows[f"{name}, without reviews"] = said, way.costs, None
        rows["everything reviewed"] = test, people, np.ones(len(test), bool)
        rows["nothing reviewed"] = nothing, people, None
        return [
            {"name": name, **money.measure_process(said, test, costs, sent)}
            for name, (said, costs, sent) in rows.items()
        ]

    def _sets(self, calibration: np.ndarray, wanted: np.ndarray, chances: np.ndarray) -> np.ndarray:
        return predict_sets(calibration, wanted, chances, self.config.coverage, by_label=not self._single)

    def _coverage(self, calibration: np.ndarray, chances: np.ndarray) -> dict[str, Any]:
        """How the promise is kept on the test images, and over new divisions of calibration and test images."""
        (wanted, test), promised = self._targets, self.config.coverage
        found = measure_coverage(self._sets(calibration, wanted, chances), test, promised)
        least = [smallest_error_rate(int(count)) for count in wanted.sum(axis=0)]
        whole, targets = np.concatenate([calibration, chances]), np.concatenate([wanted, test])
        rng, shares = np.random.default_rng([self.config.seed, 87]), []
        for _ in range(NUM_SPLITS):
            known, new = np.split(rng.permutation(len(targets)), [len(wanted)])
            sets = self._sets(whole[known], targets[known], whole[new])
            shares.append(measure_coverage(sets, targets[new], promised)["measured"])
        # Divisions of the same images are not independent: their mean is as sure as one of them.
        mean, num_images = float(np.mean(shares)), len(test)
        over = share_with_interval(round(mean * num_images), num_images)._asdict() | {"value": mean}
        return found | {"smallest_error_by_class": least, "splits": over | {"num_splits": NUM_SPLITS}}

    def _taken(self, results: dict[str, Any]) -> Judge:
        """The method that the run took, with its answers on the calibration images as the run kept them."""
        judge = self.judge(results["chosen"]["method"])
        kept = read_json(self.folder / "stages" / "calibration.json")["value"]
        judge.answers = [{name: np.array(rows) for name, rows in kept.items()}]
        judge.limit = results["chosen"]["certainty_limit"]
        return judge

    def watch(
        self,
        images: str | Path,
        *,
        reviews: str | Path | None = None,
        since: datetime | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """Answer what came in, add it to ``watch.jsonl``, test it against the calibration images, write ``watch.html``.

        Args:
            images: A folder of new images; those that the log holds already are not answered again.
            reviews: A CSV with the columns file and label, where people have looked.
            since: Images with an earlier file time are passed over.
            on_progress: Called with the images answered and their number.

        Returns:
            ``alarms`` (``name``, ``after`` and ``figures``), ``num_images``, ``sent``, ``set_size``, ``class_mix``,
            ``drift`` and, with reviews, ``reviewed``: accuracy, coverage and cost against the promise.
        """
        results, names = self.results, self.data.class_names
        labels = read_labels(Path(reviews), names, self._single) if reviews else None
        judge = self._taken(results)
        entries, counts = take_in(judge, Path(images), self.folder / LOG, since, on_progress)
        if not entries:
            raise DataError(f"{images}: all its images are older than {since}, and none was watched before")
        stream = {name: np.array([entry[name] for entry in entries]) for name in judge.answers[0]}
        judge.answers, drift = [judge.answers[0], stream], find_drift(judge.answers[0], stream, judge.thresholds)
        sets = self._sets(judge.answers[0]["probabilities"], self._targets[0], stream["probabilities"])
        sure, said = judge.decide(1)
        alarms = [
            {"name": name, "after": test["after"], "figures": {key: test[key] for key in test if key != "values"}}
            for name, test in drift.items()
            if test["alarm"]
        ]
        found: dict[str, Any] = {"alarms": alarms, "num_images": len(entries), **counts, "drift": drift}
        found |= {"first": entries[0]["time"], "last": entries[-1]["time"], "made": time.strftime("%Y-%m-%d %H:%M")}
        found |= {"sent": share_of(sure < judge.limit), "set_size": float(sets.sum(axis=1).mean())}
        found["class_mix"] = dict(zip(names, said.mean(axis=0).tolist(), strict=True))
        if labels is not None:
            files = [entry["file"] for entry in entries]
            found["reviewed"] = self._reviewed(labels, files, said, sets, sure < judge.limit)
            alarms += broken_promises(found["reviewed"], results)
        chart = draw_png(lambda: draw_watch(drift))
        write_text(self.folder / "watch.html", render("watch.html.j2", found=found, results=results, chart=chart))
        return found

    def _reviewed(
        self, labels: dict[str, list[str]], files: list[str], said: np.ndarray, sets: np.ndarray, sent: np.ndarray
    ) -> dict[str, Any]:
        """Accuracy, coverage and cost on the images that people have labelled."""
        places = [place for place, file in enumerate(files) if file in labels]
        if not places:
            raise DataError("no reviewed file is among those that came in; the review file must have their names")
        names, said = self.data.class_names, said[places]
        targets = np.array([[name in labels[files[place]] for name in names] for place in places], np.uint8)
        return {
            "num_images": len(places),
            "accuracy": share_of((said == targets).all(axis=1)),
            "coverage": measure_coverage(sets[places], targets, self.config.coverage),
            "cost": money.measure_process(said, targets, self._costs(), sent[places]),
        }

    def review_samples(self) -> SampleReviewer:
        """A widget to accept or reject the generated samples one by one; the next run has the share on its pages."""
        files = sorted((self.folder / "samples").glob("*.png"))
        names = [self.data.class_names[int(path.name.split("_")[0])] for path in files]
        return SampleReviewer(files, self.folder / REVIEW, labels=names)

    def explain(self, image: str | Path, truth: str) -> dict[str, Any]:
        """What went wrong with an image that a person reports: see :func:`~gcpl_lab.pilot.explain.explain_error`.

        Where a denoiser decides, ``explained.png`` shows what in the image speaks for answer and truth.
        """
        judge = self._taken(self.results)
        found = explain_error(judge, self.data, image, truth)
        if (drawn := draw_evidence(judge, self.data.class_names, image, truth, found["likeliest"])) is not None:
            path = write_atomically(self.folder / "explained.png", lambda path: drawn.savefig(path, format="png"))
            found["figure"] = str(path)
        return found

    def correct(self, reviews: str | Path, images: str | Path, most: int = 10) -> list[str]:
        """Take reviewed images among the exemplars of the next run: those first that the method is least sure of.

        They are decoded and written anew into ``corrections/``, without what else their files tell.

        Args:
            reviews: A CSV with the columns file and label, where people have looked.
            images: The folder of its files.
            most: Images to take.

        Returns:
            The names of the files that were taken.
        """
        labels = read_labels(Path(reviews), self.data.class_names, self._single)
        return add_corrections(self._taken(self.results), self.data, labels, Path(images), self.folder, most)


def _interval(values: np.ndarray) -> dict[str, float | None]:
    """The mean of shares with its interval, cut to shares; of one value there is none, and JSON has no nan."""
    mean, low, high = mean_with_interval(values)
    known = len(values) > 1
    return {"value": mean, "low": max(0.0, low) if known else None, "high": min(1.0, high) if known else None}


def _key(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
