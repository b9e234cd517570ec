"""A pilot on own images: runs, resumes, decides, and watches what comes in afterwards."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import linregress
from scipy.stats import t as student_t

from gcpl_lab.data.readers import read_image
from gcpl_lab.data.sets import MultiLabelSet
from gcpl_lab.data.tables import write_csv
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.evaluation import costs as money
from gcpl_lab.evaluation.captions import check_captions, read_words, write_corrected
from gcpl_lab.evaluation.fit_of_models import fit_of_models
from gcpl_lab.evaluation.metrics import confusion_matrix
from gcpl_lab.evaluation.multilabel import mean_average_precision
from gcpl_lab.evaluation.novelty import measure_novelty
from gcpl_lab.evaluation.prediction_sets import mean_with_interval, measure_coverage, predict_sets, smallest_error_rate
from gcpl_lab.evaluation.trust import share_with_interval
from gcpl_lab.experiments.registry import METHODS, MULTILABEL_METHODS, usable_workers
from gcpl_lab.pilot.config import PilotConfig, read_config, write_config
from gcpl_lab.pilot.data import CORRECTIONS, PilotData, find_kind, rarest_labels, read_data, read_labels, targets_of
from gcpl_lab.pilot.explain import compare_teaching, draw_evidence, explain_error
from gcpl_lab.pilot.images import check_images
from gcpl_lab.pilot.page import draw_png, render, write_pages
from gcpl_lab.pilot.sense import check_samples
from gcpl_lab.pilot.trials import Judge, Trials, check_methods, is_simple, make_experiment, run_pilot_trials
from gcpl_lab.pilot.verdict import decide, plan_trial
from gcpl_lab.pilot.watch import LOG, find_drift, simulate_months, take_in
from gcpl_lab.storage import file_checksum, read_json, write_atomically, write_json, write_text
from gcpl_lab.training.machine import describe_machine, describe_versions
from gcpl_lab.views.pilot import draw_watch
from gcpl_lab.views.widgets.review import SampleReviewer, read_review

FORMAT, RESULTS, REVIEW = "gcpl_lab pilot 2", "pilot.json", "samples_review.csv"
NUM_SPLITS = 50
"""New divisions of calibration and test images that a promise is measured over."""
Row = dict[str, Any]
Way = dict[str, Any]
"""A trial's answers; and how a method would be used: answers, costs, and the certainty below which a person looks."""


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
    def _experiment(self) -> Trials:
        return make_experiment(self.config, self.data, self.words)

    @cached_property
    def words(self) -> dict[str, list[str]]:
        """The trade's words for each class."""
        return read_words(self.folder / self.config.words if self.config.words else None, self.data.class_names)

    @cached_property
    def _targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Of calibration and of test images."""
        return targets_of(self.data.calibration), targets_of(self.data.test)

    @property
    def results(self) -> dict[str, Any]:
        """The content of ``pilot.json``; ArtifactError where there is none, or one of another version."""
        path = self.folder / RESULTS
        found: dict[str, Any] = read_json(path)
        if found.get("format") != FORMAT:
            raise ArtifactError(f"{path}: has the format {found.get('format')!r}; expected {FORMAT!r}: run it again")
        changed = [name for name, value in self.config.as_dict().items() if found["config"].get(name) != value]
        if changed:
            raise ArtifactError(f"{self.folder}: {', '.join(changed)} changed since the pilot ran; run it again")
        if found["checksums"]["images"] != self.data.checksum:
            raise ArtifactError(f"{self.folder}: its images have changed since the pilot ran; run it again")
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
            found["captions"] = check_captions(data.pool, self.words)
            write_corrected(data.pool, self.words, self.folder / "metadata_corrected.csv")
        found["fit_of_models"] = self._stage("fit_of_models", self._measure_fit)
        rows = run_pilot_trials(config, self._experiment, self.folder, usable_workers(num_workers), tell)
        tell("thresholds, sets and costs")
        found["methods"] = self._compare(rows)
        ways = {method: self._way(method, rows) for method in config.method_names}
        found |= self._decide(ways)
        taken = ways[found["chosen"]["method"]]
        learned = [method for method in ways if not is_simple(method, config.kind)]
        if config.generated and learned and self._single:
            tell("generated samples")
            arguments = (learned[0], taken["judge"], data, self.folder, config.seed)
            found["samples"] = self._stage("samples", lambda: check_samples(*arguments))
        tell("simulated months, and what corrections teach")
        months: Any = (taken["judge"], taken["answers"], data, config.seed)
        found["watch"] = self._stage("watch", lambda: simulate_months(*months))
        found["teaching"] = self._stage("teaching", lambda: compare_teaching(taken["judge"], data, seed=config.seed))
        found["verdict"] = decide(config, found)
        shares = [found[name]["accuracy"]["value"] for name in ("chosen", "simple_chosen")]
        found["trial"] = plan_trial(shares[0], shares[1], config.images_a_month)
        found["reviewed_samples"] = self._samples_reviewed()
        found |= {"versions": describe_versions(), "machine": describe_machine()}
        found["checksums"] = {"images": data.checksum, "configuration": _key(config.as_dict())}
        self._stage("calibration", lambda: {name: rows.tolist() for name, rows in taken["answers"][0].items()})
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

    def _measure(self, chances: np.ndarray, num_draws: int = 0) -> dict[str, float]:
        """Accuracy on test images with Wilson's interval, or mean average precision with one by bootstrap."""
        test = self._targets[1]
        if self._single:
            right = int((chances.argmax(axis=1) == test.argmax(axis=1)).sum())
            return share_with_interval(right, len(test))._asdict()
        rng = np.random.default_rng([self.config.seed, 83])
        drawn = [rng.integers(len(test), size=len(test)) for _ in range(num_draws)]
        value = mean_average_precision(chances, test)
        ends = np.quantile([mean_average_precision(chances[p], test[p]) for p in drawn] or [value], [0.025, 0.975])
        return {"value": value, "low": float(ends[0]), "high": float(ends[1])}

    def _about(self, method: str) -> dict[str, Any]:
        title = (METHODS if self._single else MULTILABEL_METHODS).titles()[method]
        return {"method": method, "title": title, "simple": is_simple(method, self.config.kind)}

    def _compare(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Each method: quality over draws with all exemplars, seconds, and its curve over fewer, the best first.

        ``doubling`` is what twice the images bring, the slope over log2 with its interval, from ``num_points`` rows.
        """
        found, most, num_images = [], max(row["shots"] for row in rows), len(self.data.test)
        for method in self.config.method_names:
            same = [row for row in rows if row["method"] == method]
            values = np.array([self._measure(np.array(row["probabilities"])[-num_images:])["value"] for row in same])
            shots = np.array([row["shots"] for row in same])
            entry = {**self._about(method), "num_images": num_images, "num_points": len(same)}
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

    def judge(self, method: str) -> Judge:
        """A method of draw 0 that can be asked about other images."""
        return Judge(method, self.config.shots, self._experiment, self.folder)

    def _way(self, method: str, rows: Sequence[Row]) -> Way:
        """A method's answers on calibration and test images, and its threshold with the least cost on the former."""
        judge, wanted, most = self.judge(method), self._targets[0], max(row["shots"] for row in rows)
        row = next(row for row in rows if (row["method"], row["seed"], row["shots"]) == (method, 0, most))
        whole = {"distances": judge.distances(self._experiment.test_features)}
        whole |= {name: np.array(row[name]) for name in ("probabilities", "errors") if name in row}
        places = slice(len(wanted)), slice(len(wanted), None)
        answers = [{name: values[part] for name, values in whole.items()} for part in places]
        costs = self.config.costs(row["predict_seconds"] / len(whole["distances"]))
        way = {"judge": judge, "answers": answers, "costs": costs}
        sure, said = self._said(way, 0)
        choices: Any = {"most_reviewed": self.config.most_reviewed, "normal": self._normal}
        way["limit"] = money.choose_threshold(sure, said, wanted, costs, **choices)
        reviewed = sure < way["limit"]
        spent = money.measure_process(method, said, wanted, costs, reviewed=reviewed, normal=self._normal)
        return way | {"spent": spent["cost"]}

    def _said(self, way: Way, part: int) -> tuple[np.ndarray, np.ndarray]:
        """How sure a method is of each image of a part (0: calibration, 1: test), and what it answers."""
        chances, thresholds = way["answers"][part]["probabilities"], way["judge"].thresholds
        return money.certainty_of(chances, thresholds), money.answers_of(chances, thresholds)

    @property
    def _normal(self) -> int | None:
        name = self.config.normal_class
        return self.data.class_names.index(name) if name else None

    def _decide(self, ways: Mapping[str, Way]) -> dict[str, Any]:
        """The method with the least cost on calibration images, and the best simple one, measured on test images."""
        simple = [name for name in ways if is_simple(name, self.config.kind)]
        chosen, rival = (min(names, key=lambda name: ways[name]["spent"]) for names in (ways, simple))
        way, (wanted, test) = ways[chosen], self._targets
        found: dict[str, Any] = {}
        for key, method in (("chosen", chosen), ("simple_chosen", rival)):
            quality = self._measure(ways[method]["answers"][1]["probabilities"], num_draws=200)
            found[key] = {**self._about(method), "accuracy": quality, "num_images": len(test)}
            found[key]["certainty_limit"] = ways[method]["limit"]
        found["processes"] = processes = self._processes(way, ways[rival])
        found["cost"] = {process["name"]: process["cost"] for process in processes}
        about: Any = (way["costs"], self.config.set_up)
        others = processes[2:]
        found["break_even"] = {other["name"]: money.break_even(processes[0], other, *about) for other in others}
        sure, said = self._said(way, 1)
        found["reviews"] = share_with_interval(int((sure < way["limit"]).sum()), len(test))._asdict()
        found["wholly_right"] = share_with_interval(int((said == test).all(axis=1).sum()), len(test))._asdict()
        found["coverage"] = self._coverage(*(part["probabilities"] for part in way["answers"]))
        labels = wanted.argmax(axis=1), test.argmax(axis=1)
        found["none_of_these"] = None  # with several labels, or two classes, nothing can be left out
        if self._single and test.shape[1] > 2:
            parts = (way["answers"][0], labels[0], way["answers"][1], labels[1])
            found["none_of_these"] = measure_novelty(*parts, most_refused=self.config.most_refused)
        if self._single:
            matrix = confusion_matrix(way["answers"][1]["probabilities"], labels[1])
            weighted = money.weighted_confusion(matrix, way["costs"], self._normal)
            found["confusion"] = {"counts": matrix.tolist(), "cost": weighted.tolist()}
        return found

    def _processes(self, ours: Way, rival: Way) -> list[dict[str, Any]]:
        """Ours and the best simple method, each with and without reviews; then people alone, and nobody."""
        test, normal, made = self._targets[1], self._normal, list[dict[str, Any]]()
        for name, way in (("taken", ours), ("best simple", rival)):
            sure, said = self._said(way, 1)
            for ending, sent in (("with reviews", sure < way["limit"]), ("without reviews", None)):
                title = f"{name}, {ending}"
                made.append(money.measure_process(title, said, test, way["costs"], reviewed=sent, normal=normal))
        people, everything, nothing = self.config.costs(), np.ones(len(test), bool), np.zeros_like(test)
        if self._single:  # whatever comes in is taken for the normal class, or for the most frequent one
            nothing[:, int(self._targets[0].sum(axis=0).argmax()) if normal is None else normal] = 1
        for title, said, sent in (("everything reviewed", test, everything), ("nothing reviewed", nothing, None)):
            made.append(money.measure_process(title, said, test, people, reviewed=sent, normal=normal))
        return made

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
        judge, kept = self.judge(results["chosen"]["method"]), self._calibration
        entries, counts = take_in(judge, Path(images), self.folder / LOG, since, on_progress)
        if not entries:
            raise DataError(f"{images}: all its images are older than {since}, and none was watched before")
        stream = {name: np.array([entry[name] for entry in entries]) for name in kept}
        drift, chances = find_drift(kept, stream, judge.thresholds), stream["probabilities"]
        sets = self._sets(kept["probabilities"], self._targets[0], chances)
        sent = money.certainty_of(chances, judge.thresholds) < results["chosen"]["certainty_limit"]
        said = money.answers_of(chances, judge.thresholds)
        alarms = [
            {"name": name, "after": test["after"], "figures": {key: test[key] for key in test if key != "values"}}
            for name, test in drift.items()
            if test["alarm"]
        ]
        found: dict[str, Any] = {"alarms": alarms, "num_images": len(entries), **counts, "drift": drift}
        found |= {"first": entries[0]["time"], "last": entries[-1]["time"], "made": time.strftime("%Y-%m-%d %H:%M")}
        found["sent"] = share_with_interval(int(sent.sum()), len(sent))._asdict()
        found["set_size"] = float(sets.sum(axis=1).mean())
        found["class_mix"] = dict(zip(names, said.mean(axis=0).tolist(), strict=True))
        if labels is not None:
            found["reviewed"] = self._reviewed(labels, [entry["file"] for entry in entries], said, sets, sent)
            alarms += _broken_promises(found["reviewed"], results)
        chart = draw_png(lambda: draw_watch(drift))
        write_text(self.folder / "watch.html", render("watch.html.j2", found=found, results=results, chart=chart))
        return found

    @property
    def _calibration(self) -> dict[str, np.ndarray]:
        """The answers of the method taken on the calibration images, as the run kept them."""
        kept = read_json(self.folder / "stages" / "calibration.json")["value"]
        return {name: np.array(rows) for name, rows in kept.items()}

    def _reviewed(
        self, labels: dict[str, list[str]], files: list[str], said: np.ndarray, sets: np.ndarray, sent: np.ndarray
    ) -> dict[str, Any]:
        """Accuracy, coverage and cost on the images that people have labelled."""
        places = [place for place, file in enumerate(files) if file in labels]
        if not places:
            raise DataError("no reviewed file is among those that came in; the review file must have their names")
        names, said = self.data.class_names, said[places]
        targets = np.array([[name in labels[files[place]] for name in names] for place in places], np.uint8)
        costs, normal = self.config.costs(), self._normal
        return {
            "num_images": len(places),
            "accuracy": share_with_interval(int((said == targets).all(axis=1).sum()), len(places))._asdict(),
            "coverage": measure_coverage(sets[places], targets, self.config.coverage),
            "cost": money.measure_process("reviewed", said, targets, costs, reviewed=sent[places], normal=normal),
        }

    def _samples_reviewed(self) -> dict[str, Any] | None:
        """What people said of the generated samples, in the file that :meth:`review_samples` writes."""
        decisions = [row["decision"] == "accept" for row in read_review(self.folder / REVIEW).values()]
        if not decisions:
            return None
        return share_with_interval(sum(decisions), len(decisions))._asdict() | {"n": len(decisions)}

    def review_samples(self) -> SampleReviewer:
        """A widget to accept or reject the generated samples one by one; the next run has the share on its pages."""
        files = sorted((self.folder / "samples").glob("*.png"))
        names = [self.data.class_names[int(path.name.split("_")[0])] for path in files]
        return SampleReviewer(files, self.folder / REVIEW, labels=names)

    def explain(self, image: str | Path, truth: str) -> dict[str, Any]:
        """What went wrong with an image that a person reports: see :func:`~gcpl_lab.pilot.explain.explain_error`.

        Where a denoiser decides, ``explained.png`` shows what in the image speaks for answer and truth.
        """
        judge = self.judge(self.results["chosen"]["method"])
        found = explain_error(judge, self._calibration, self.data, image, truth)
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
        names, target = self.data.class_names, self.folder / CORRECTIONS
        labels = read_labels(Path(reviews), names, self._single)
        files = {Path(images) / name: named for name, named in labels.items() if (Path(images) / name).is_file()}
        kept = read_labels(target, names, self._single) if target.is_file() else {}
        places = {path: f"corrections/{file_checksum(path)[:16]}.png" for path in files}
        new = [path for path in files if places[path] not in kept]
        if not new:
            raise DataError(
                f"{reviews}: {images} has none of its files that was not taken before; nothing to learn from"
            )
        judge = self.judge(self.results["chosen"]["method"])
        sure = money.certainty_of(judge.answer(new)["probabilities"], judge.thresholds)
        chosen = [new[place] for place in np.argsort(sure, kind="stable")[:most]]
        for path in chosen:
            image = read_image(path)
            write_atomically(self.folder / places[path], lambda to, image=image: image.save(to, format="PNG"))  # type: ignore[misc]
            kept[places[path]] = files[path]
        write_csv(target, [{"file": file, "label": ";".join(named)} for file, named in kept.items()])
        return [path.name for path in chosen]


def _broken_promises(now: Mapping[str, Any], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An alarm for each figure of reviewed images whose interval lies beyond what the pilot measured or promised."""
    before = {"accuracy": results["wholly_right"], "coverage": results["coverage"], "cost": results["processes"][0]}
    broken = {
        "accuracy": now["accuracy"]["high"] < before["accuracy"]["low"],
        "coverage": now["coverage"]["high"] < before["coverage"]["promised"],
        "cost": now["cost"]["low"] > before["cost"]["high"],
    }
    return [
        {"name": f"reviewed {name}", "after": now["num_images"], "figures": {"now": now[name], "pilot": before[name]}}
        for name in broken
        if broken[name]
    ]


def _interval(values: np.ndarray) -> dict[str, float | None]:
    """The mean of shares with its interval, cut to shares; of one value there is none, and JSON has no nan."""
    mean, low, high = mean_with_interval(values)
    known = len(values) > 1
    return {"value": mean, "low": max(0.0, low) if known else None, "high": min(1.0, high) if known else None}


def _key(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
