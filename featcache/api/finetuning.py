"""A dataset in the cache and a way to train enter; a fine-tuned network, scored beside a head, leaves."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.api.asking import asks
from featcache.api.experiment import Experiment, open_experiment
from featcache.api.feeding import Feed, Feeder
from featcache.api.models import check_labels, versions
from featcache.api.options import Options, moved
from featcache.backbones import Backbone, finetuned, reproduce, scratch_cnn
from featcache.errors import DatasetError, TrainingError
from featcache.heads import get
from featcache.process import after_forks_too
from featcache.records import Progress, Source
from featcache.records.experiments import Score
from featcache.records.finetuning import EpochRow, FinetuneSummary, Training, points_a_minute, short
from featcache.records.reading import ALL, Reading
from featcache.render.tables import records_csv
from featcache.sources import CLOSED
from featcache.splits import Plan, Rows, check_seed, digest, hold_out
from featcache.store import Run
from featcache.tuning.checking import check

if TYPE_CHECKING:
    from featcache.experiments.fitting import Fitted
    from featcache.tuning.blocks import Cut
    from featcache.tuning.classifier import FinetuneClassifier

HEAD = "logreg"
"""The head that the new top begins from, and is compared with."""

LIMIT = 10 * 10**9
"""How many bytes a partial cache may take unless another limit is given."""


@after_forks_too
@asks
def finetune(
    source: Source | None = None,
    training: Training | None = None,
    seed: int = 0,
    options: Options | None = None,
    progress: Progress | None = None,
    partial_cache_limit: int = LIMIT,
    on_epoch: Callable[[EpochRow], None] = lambda row: None,
) -> FinetuneSummary:
    """Train the last blocks of the network behind the dataset's features, and score it on the split of its heads.

    The dataset is the one last extracted, or `source` after extracting what it lacks. Epochs are judged on val, or
    where there is none on a fifth of train. What the frozen blocks give is kept in the cache, up to
    `partial_cache_limit` bytes. A training that was stopped goes on after its last whole epoch when it is asked for
    again. `on_epoch` is called with each epoch. Raises `FeatcacheError`.
    """
    check_seed(seed)
    training, options = training or Training(), options or Options()
    check(training)
    is_scratch = options.backbone == scratch_cnn.NAME
    if is_scratch:
        training = replace(training, unfreeze="all")
    asked = replace(options, backbone="auto") if is_scratch else options
    asked = asked if source is not None else replace(asked, device="auto")
    with open_experiment(source, asked, progress) as experiment, experiment.cache.in_use():
        if experiment.access is CLOSED and (training.unfreeze, training.augment) != ("head", "none"):
            raise DatasetError(
                f"{experiment.root} was imported, and what it names is not opened: extract the folder that its "
                "pictures are in, of which nothing is computed again, and fine-tune that; or unfreeze the head alone"
            )
        is_of_pages = Reading.of(experiment.spec.reading).page == ALL
        if is_of_pages and (training.unfreeze, training.augment) != ("head", "none"):
            raise TrainingError(
                f"the features of {experiment.root} are means over all pages of a file, and a network is trained on "
                "one picture at a time: extract one page, or unfreeze the head alone"
            )
        backbone = scratch_cnn.untrained(seed) if is_scratch else _backbone(experiment)
        with experiment.run("finetune") as run:
            work = _Work(experiment, backbone, training, seed, options, run)
            summary = work.do(partial_cache_limit, progress, on_epoch)
            experiment.cache.runs.finish(run, asdict(summary), work.model_sha256)
            work.checkpoint.drop()
            return summary


def _backbone(experiment: Experiment) -> Backbone:
    """Return the network that made the features; raises `TrainingError` where it does not calculate exactly."""
    spec, file = experiment.spec, experiment.extracted.get("weights_file")
    if spec.precision != "fp32":
        raise TrainingError(
            f"the features of {experiment.root} are {spec.precision}, and a network is trained in fp32: "
            f"run `featcache extract {experiment.root}` without --precision first"
        )
    return reproduce(spec, moved(experiment.cache, file), experiment.cache.backbones)


@dataclass(frozen=True)
class _Probe:
    """The head fitted on all of train, and the one that the training begins from, fitted without the validation."""

    head: Fitted
    truth: Rows
    score: Score
    seconds: float
    start: Fitted | None


class _Work:
    """One fine-tuning, step by step."""

    def __init__(
        self, experiment: Experiment, backbone: Backbone, training: Training, seed: int, options: Options, run: Run
    ) -> None:
        self.experiment, self.backbone, self.training = experiment, backbone, training
        self.seed, self.options, self.run = seed, options, run
        check_labels(experiment.root, experiment.roll.labels)
        self.plan = experiment.plan(seed)
        features = experiment.features
        if self.plan.val is None:
            rows = self.plan.train
            held = hold_out([features.keys[row] for row in rows], features.y[rows].tolist(), seed)
            self.train, self.val = rows[~held], rows[held]
            self.validated_on = "20 % of train"
        else:
            self.train, self.val = self.plan.train, self.plan.val
            self.validated_on = "val"
        self.identity = hashlib.sha256(json.dumps(self._deciding(), sort_keys=True).encode()).hexdigest()
        self.checkpoint = experiment.cache.checkpoint(self.identity[:16])
        self.history_file = f"runs/{run.id:06d}-epochs.csv"
        self.model_sha256: str | None = None

    def do(self, limit: int, progress: Progress | None, on_epoch: Callable[[EpochRow], None]) -> FinetuneSummary:
        from featcache.tuning.blocks import cut

        start = time.perf_counter()
        network = cut(
            self.backbone.build(), self.backbone.name, self.training.unfreeze, self.backbone.spec.preprocess.crop
        )
        before = time.perf_counter() - start
        probe = self._probe(progress)
        start = time.perf_counter()
        feeder = Feeder(self.experiment, self.backbone, network, self.training, self.seed, self.options)
        feed = feeder.feed(self.train, self.val, self.plan.scored, limit, progress)
        self._check_trained(feed.train.rows)
        self._check_scored(feed.scored.rows)
        rows: list[EpochRow] = []

        def note(row: EpochRow) -> None:
            rows.append(row)
            self.experiment.cache.put(self.history_file, records_csv(rows).encode())
            on_epoch(row)

        before += time.perf_counter() - start
        classifier = self._fit(network, feed, probe, progress, note)
        middle = time.perf_counter()
        scored, probabilities = classifier.trainer_.predict_proba(feed.scored.inputs)
        self._check_scored(feed.scored.rows[scored])
        trained = sum(row.seconds for row in classifier.history_)
        seconds = before + trained + time.perf_counter() - middle
        return self._summary(classifier, feed, probe, probabilities, seconds)

    def _check_trained(self, rows: Rows) -> None:
        """Raise `TrainingError` where a class has lost all pictures to train on, and would be none of the classes."""
        y = self.experiment.features.y
        lost = np.setdiff1d(y[self.train], y[rows])
        if len(lost):
            raise TrainingError(
                f"no picture of class {str(lost[0])!r} that is trained on can be read any more, or all have changed: "
                "put them back, or extract again"
            )

    def _check_scored(self, rows: Rows) -> None:
        """Raise `TrainingError` where pictures are lost that the heads were scored on."""
        lost = np.setdiff1d(self.plan.scored, rows)
        if len(lost):
            first = self.experiment.features.paths[lost[0]]
            raise TrainingError(
                f"{len(lost):,} of the scored pictures cannot be read any more, or have changed, so that no score "
                f"would compare with the heads', as {first}: put them back, or extract again"
            )

    def _deciding(self) -> dict[str, Any]:
        """Return all that decides the course of a training, by which a stopped one is known again."""
        features = self.experiment.features
        parts = {
            name: sorted([features.keys[row].hex(), str(features.y[row])] for row in rows)
            for name, rows in (("train", self.train), ("val", self.val))
        }
        spec = self.backbone.spec.to_json()
        return {"spec": spec, "training": asdict(self.training), "seed": self.seed, "rows": parts, **versions()}

    def _probe(self, progress: Progress | None) -> _Probe:
        from featcache.evaluate import score
        from featcache.experiments.fitting import fit_head
        from featcache.experiments.prepared import prepare
        from featcache.heads.scaling import LINEAR

        features, plan, head = self.experiment.features, self.plan, get(HEAD)
        data = prepare(features, plan)
        whole = fit_head(head, data, self.seed, progress)
        start = None
        if not self._is_scratch:
            inner = Plan(self.train, None, self.val, "val", {})
            start = fit_head(head, prepare(features, inner, scalings=LINEAR), self.seed, progress)
        seconds = data.seconds + whole.fit_seconds
        return _Probe(whole, data.truth, score(plan.scored_name, data.truth, whole.probabilities), seconds, start)

    @property
    def _is_scratch(self) -> bool:
        return self.backbone.name == scratch_cnn.NAME

    def _fit(
        self,
        network: Cut,
        feed: Feed,
        probe: _Probe,
        progress: Progress | None,
        on_epoch: Callable[[EpochRow], None],
    ) -> FinetuneClassifier:
        from featcache.tuning.classifier import FinetuneClassifier
        from featcache.tuning.start import linear_layer

        y = self.experiment.features.y
        classifier = FinetuneClassifier(
            self.backbone, **asdict(self.training), seed=self.seed, device=self.options.device
        )
        return classifier.fit(
            feed.train.inputs,
            y[feed.train.rows],
            (feed.val.inputs, y[feed.val.rows]),
            network=network,
            start=linear_layer(probe.start.estimator) if probe.start else None,
            checkpoint=self.checkpoint,
            identity=f"{self.backbone.name}, unfreezing {self.training.unfreeze}, {self.identity}",
            progress=progress,
            on_epoch=on_epoch,
        )

    def _save(self, classifier: FinetuneClassifier, score: Score) -> str:
        """Keep the network with its top, and return where."""
        linear = classifier.trainer_.linear
        architecture = self.backbone.name
        if architecture.startswith(finetuned.PREFIX):
            assert self.backbone.file is not None
            architecture = finetuned.read(self.backbone.file).architecture
        known = finetuned.Finetuned(
            run=self.run.id,
            architecture=architecture,
            spec=self.backbone.spec,
            classes=tuple(str(label) for label in classifier.classes_),
            scores=asdict(score),
            versions=versions(),
            top=(linear.weight.detach().cpu().numpy(), linear.bias.detach().cpu().numpy()),
        )
        name = f"models/{self.run.id:06d}-finetune{finetuned.SUFFIX}"
        data = finetuned.pack(classifier.cut_.network, known)
        self.model_sha256 = hashlib.sha256(data).hexdigest()
        return str(self.experiment.cache.put(name, data))

    def _summary(
        self, classifier: FinetuneClassifier, feed: Feed, probe: _Probe, probabilities: Any, seconds: float
    ) -> FinetuneSummary:
        from featcache.evaluate import Outcome, paired_tests, score

        experiment, plan = self.experiment, self.plan
        keys = [experiment.features.keys[row] for row in plan.scored]
        truth = np.searchsorted(classifier.classes_, experiment.features.y[plan.scored])
        scored = score(plan.scored_name, truth, probabilities)
        hits = probabilities.argmax(1) == truth
        head_hits = probe.head.probabilities.argmax(1) == probe.truth
        outcome = Outcome(np.arange(len(truth)), truth, {"network": hits, HEAD: head_hits})
        gain = scored.accuracy - probe.score.accuracy
        return FinetuneSummary(
            network=self.backbone.name,
            weights=self.backbone.weights,
            unfreeze=self.training.unfreeze,
            unfrozen=classifier.cut_.names,
            training=asdict(self.training),
            start=f"{HEAD} on train without the validation pictures" if probe.start else "random weights",
            dataset=experiment.root,
            backbone=experiment.spec.backbone,
            fingerprint=experiment.spec.fingerprint,
            split_sizes=plan.sizes,
            split_digest=digest(experiment.features, [plan]),
            n_classes=len(classifier.classes_),
            validated_on=self.validated_on,
            n_train=len(feed.train.rows),
            n_val=len(feed.val.rows),
            **scored.summarised(),
            seed=self.seed,
            best_epoch=classifier.best_epoch_,
            stopped=classifier.stopped_,
            history=classifier.history_,
            device=str(classifier.trainer_.device),
            cached_bytes=feed.cached_bytes,
            computed=feed.computed,
            seconds=round(seconds, 3),
            head=HEAD,
            head_accuracy=probe.score.accuracy,
            head_low=probe.score.accuracy_low,
            head_high=probe.score.accuracy_high,
            head_balanced_accuracy=probe.score.balanced_accuracy,
            head_macro_f1=probe.score.macro_f1,
            head_log_loss=probe.score.log_loss,
            head_seconds=round(probe.seconds, 3),
            gain=gain,
            p_value=paired_tests([outcome], "network", ["network", HEAD])[HEAD],
            gain_per_minute=points_a_minute(gain, seconds),
            wrong=tuple(sorted(short(key) for key, hit in zip(keys, hits, strict=True) if not hit)),
            model=self._save(classifier, scored),
            history_file=str(experiment.cache.folder / self.history_file),
            versions=versions(),
            notices=(*experiment.notices, *plan.notices, *feed.notices, *self._lost(feed)),
            extracted=experiment.extracted_at,
            unscored=plan.unscored,
        )

    @staticmethod
    def _lost(feed: Feed) -> list[str]:
        """Say which pictures stopped being readable while the training went on."""
        lost = {**getattr(feed.train.inputs, "failures", {}), **getattr(feed.val.inputs, "failures", {})}
        return [
            f"{len(lost):,} pictures could not be read in some epoch and were left out of it, as {path}: {reason}"
            for path, reason in list(lost.items())[:1]
        ]
