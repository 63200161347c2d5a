"""From a config to the graph of its run: which stages there are, what each depends on, and where it lies.

Nothing is read or run except what identifies data and models. The settings of a stage are its fingerprint: a key that
changes here makes every run that exists do the stage again. What a stage does stands in the fields of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from ensemw2s.boosting.anchors import ANCHORS
from ensemw2s.config import Config, LabelFilter, Recipe
from ensemw2s.config.systems import (
    BAGGING,
    BASE_ENSEMBLE,
    BASE_ZERO_SHOT,
    COMPUTE_MATCHED,
    DEEP_ENSEMBLE,
    ENSEMW2S,
    EXPERT_SINGLE,
    GENERATIONS,
    TABLE,
)
from ensemw2s.data.examples import derive_seed
from ensemw2s.pipeline.foundations import Foundations
from ensemw2s.pipeline.graph import Base, Expert, Graph, Round, Student, StudentGeneration
from ensemw2s.pipeline.identity import FIRST_ROUND, settings_of
from ensemw2s.storage.store import Stage


def build_graph(config: Config, shared: Path | None = None) -> Graph:
    """Lays out the stages of a config.

    Args:
        config: The config.
        shared: A folder that similar runs share, in place of the run's own; its stages are named by fingerprint.

    Raises:
        DataError: If a data source cannot be identified (a file is missing).
    """
    return _Builder(config, shared).build()


class _Builder(Foundations):
    def build(self) -> Graph:
        rounds, baselines = self._rounds(), self._baselines()
        anchor = self._anchor(rounds)
        ensemble = self._ensemble(rounds, anchor)
        labels = self._labels(ensemble, baselines)
        generations = self._generations(labels[ENSEMW2S])
        students = self._students(labels, generations)
        return Graph(
            config=self.config,
            root=self.root,
            shared=self.shared,
            data=self.data,
            corpus=self.corpus,
            weak=self.weak,
            strong=self.strong,
            tokens=self.tokens,
            rounds=rounds,
            anchor=anchor,
            baselines=baselines,
            ensemble=ensemble,
            labels=labels,
            generations=generations,
            students=students,
            evaluation=self._evaluation(ensemble, baselines, labels, students),
        )

    def _expert(
        self,
        name: str,
        number: int,
        settings: dict[str, object],
        *,
        epochs: int | None = None,
        after: tuple[Stage, ...] = (),
        keep: Literal["last", "best"] = "last",
        bootstrap_examples: bool = False,
        warm_from: Stage | None = None,
    ) -> Expert:
        """An expert.

        Args:
            name: Its stage.
            number: Its place over rounds and width, which decides on base and recipe.
            settings: What its stage depends on beside recipe, adapters, seed and the section `training`.
            epochs: Its epochs; None: those of the recipe.
            after: Stages that it reads beside its tokens and its base.
            keep: See `Expert`.
            bootstrap_examples: See `Expert`.
            warm_from: See `Expert`.
        """
        base, recipe = self._member(number)
        if epochs is not None:
            recipe = recipe.model_copy(update={"epochs": epochs})
        seed = derive_seed(self.config.seed, name)
        described = {
            **settings_of(recipe, "expert"),
            **self._training(),
            **settings,
            "lora": base.lora.model_dump(mode="json") if base.lora else None,
            "seed": seed,
        }
        return Expert(
            stage=self._stage(name, described, (self.tokens, base.stage, *after)),
            base=base,
            recipe=recipe,
            seed=seed,
            keep=keep,
            bootstrap_examples=bootstrap_examples,
            warm_from=warm_from,
        )

    def _member(self, number: int) -> tuple[Base, Recipe]:
        """Base and recipe of the expert with this number over rounds and width."""
        members, recipe = self.config.boosting.members, self.config.expert
        base = self.weak[number % len(self.weak)]
        if not members:
            return base, recipe
        member = members[number % len(members)]
        if member.model is not None:
            base = next(b for b in self.weak if b.name == member.model)
        if member.lora_rank is not None and base.lora is not None:
            base = replace(base, lora=base.lora.model_copy(update={"rank": member.lora_rank}))
        changes = {k: v for k in ("learning_rate", "epochs") if (v := getattr(member, k)) is not None}
        return base, recipe.model_copy(update=changes)

    def _rounds(self) -> tuple[Round, ...]:
        boosting = self.config.boosting
        settings = boosting.deciding()
        if boosting.error_from == "ensemble":
            settings["ensemble.combine"] = self.config.ensemble.combine
        rounds: list[Round] = []
        for t in range(1, boosting.rounds + 1):
            before = rounds[-1] if rounds else None
            experts, retries = (
                tuple(self._round_expert(t, k, suffix, settings, before) for k in range(boosting.width))
                for suffix in ("", "-retry")
            )
            inputs = tuple(expert.stage for expert in experts)
            stage = self._stage(f"rounds/{t}", {**settings, "round": t}, inputs)
            rounds.append(Round(t, stage, experts, retries))
        return tuple(rounds)

    def _round_expert(self, t: int, k: int, suffix: str, settings: dict[str, object], before: Round | None) -> Expert:
        boosting = self.config.boosting
        if before is None:  # all weights are equal, whatever is made of errors later
            settings = {f"boosting.{key}": settings[f"boosting.{key}"] for key in FIRST_ROUND}
        return self._expert(
            f"rounds/{t}/experts/{k}{suffix}",
            (t - 1) * boosting.width + k,
            settings,
            after=(before.stage,) if before else (),
            warm_from=before.experts[k].stage if before and boosting.warm_start == "previous" else None,
        )

    def _baselines(self) -> dict[str, tuple[Expert, ...]]:
        """The experts that are trained for one system alone, of those systems that are needed."""
        makers: dict[str, Callable[[str], tuple[Expert, ...]]] = {
            EXPERT_SINGLE: self._single,
            COMPUTE_MATCHED: self._matched,
            BAGGING: partial(self._team, drawn=True),
            DEEP_ENSEMBLE: self._team,
        }
        return {name: make(f"baselines/{name}") for name, make in makers.items() if name in self.needed}

    def _single(self, name: str) -> tuple[Expert, ...]:
        epochs = self.config.evaluation.single_max_epochs or 2 * self._member(0)[1].epochs
        return (self._expert(name, 0, {"keep": "best"}, epochs=epochs, keep="best"),)

    def _matched(self, name: str) -> tuple[Expert, ...]:
        budget = sum(self._member(number)[1].epochs for number in range(self._members))
        return (self._expert(name, 0, {}, epochs=budget),)

    def _team(self, name: str, *, drawn: bool = False) -> tuple[Expert, ...]:
        """As many experts as the ensemble has; `drawn`: each on easy examples that are drawn with replacement."""
        settings: dict[str, object] = {"bootstrap": "examples"} if drawn else {}
        return tuple(
            self._expert(f"{name}/{number}", number, settings, bootstrap_examples=drawn)
            for number in range(self._members)
        )

    @property
    def _members(self) -> int:
        return self.config.boosting.rounds * self.config.boosting.width

    def _anchor(self, rounds: tuple[Round, ...]) -> Stage | None:
        """The search for the anchor: what decides about the members' votes and about how they answer."""
        if self.config.boosting.anchor != "auto":
            return None
        settings = {
            **self._combine(),
            "ensemble.weights": "uniform" if self.config.ensemble.weights == "uniform" else "alpha",
            "labeling.max_new_tokens": self.config.labeling.max_new_tokens,
            "labeling.precision": self.config.labeling.precision,
            "anchors": list(ANCHORS),
        }
        return self._stage("anchor", settings, (self.data, rounds[-1].stage))

    def _ensemble(self, rounds: tuple[Round, ...], anchor: Stage | None) -> Stage:
        """The rounds lead to the tokens of easy validation, on which votes may be fitted."""
        ensemble = self.config.ensemble
        settings: dict[str, object] = {f"ensemble.{key}": value for key, value in ensemble.deciding().items()}
        settings["boosting.rounds"] = self.config.boosting.rounds
        if ensemble.fitted:
            settings["labeling.precision"] = self.config.labeling.precision
        if self.config.boosting.anchor != 1:
            settings["boosting.anchor"] = self.config.boosting.anchor
        inputs = (rounds[-1].stage, *([anchor] if anchor is not None else []))
        return self._stage("ensemble", settings, inputs)

    def _labels(self, ensemble: Stage, baselines: Mapping[str, tuple[Expert, ...]]) -> dict[str, Stage]:
        """Pseudo-labels of the ensemble, and of each baseline whose labels a student learns from."""
        wanted = {TABLE[name].labels_by for name in self.config.evaluation.systems}
        labels = {ENSEMW2S: self._stage("labels", self._labeling(), (self.data, ensemble))}
        voters = {name: [expert.stage for expert in experts] for name, experts in baselines.items()}
        voters[BASE_ENSEMBLE] = [base.stage for base in self.weak]
        for maker in voters:
            if maker in wanted:
                settings = self._labeling() | (self._combine() if TABLE[maker].vote is not None else {})
                inputs = (self.data, *voters[maker])
                labels[maker] = self._stage(f"baselines/labels/{maker}", settings, inputs)
        return labels

    def _labeling(self) -> dict[str, object]:
        return {f"labeling.{key}": value for key, value in self.config.labeling.deciding().items()}

    def _combine(self) -> dict[str, object]:
        return {"ensemble.combine": self.config.ensemble.combine}

    def _generations(self, labels: Stage) -> tuple[StudentGeneration, ...]:
        """Those that label for another one; the first learns from the labels of the boosted weak experts."""
        made: list[StudentGeneration] = []
        maker = ENSEMW2S
        for number in range(1, self.config.student.generations if GENERATIONS in self.needed else 1):
            folder = f"generations/{number}"
            table = self._stage(f"tokens/{folder}", self._table(), (self.data, self.strong.stage, labels))
            names = [f"{folder}/students/{k}" for k in range(self.config.student.generation_width)]
            students = tuple(
                Student(
                    name=name,
                    data=table,
                    stage=self._student(name, table, derive_seed(self.config.seed, name)),
                    seed=derive_seed(self.config.seed, name),
                    learns_from="pseudo",
                    maker=maker,
                )
                for name in names
            )
            ensemble = self._stage(f"{folder}/ensemble", self._combine(), tuple(student.stage for student in students))
            labels = self._stage(f"{folder}/labels", self._labeling(), (self.data, ensemble))
            made.append(StudentGeneration(number=number, students=students, ensemble=ensemble, labels=labels))
            maker = made[-1].name
        return tuple(made)

    def _students(self, labels: Mapping[str, Stage], generations: tuple[StudentGeneration, ...]) -> tuple[Student, ...]:
        labels = {**labels, **{generation.name: generation.labels for generation in generations}}
        seed = derive_seed(self.config.seed, "student")  # the same for all: they differ in their data alone
        students = []
        for system in (TABLE[name] for name in self.config.evaluation.systems):
            if system.learns_from is None:
                continue
            maker = generations[-1].name if system.name == GENERATIONS else system.labels_by
            inputs = (self.data, self.strong.stage, *((labels[maker],) if maker is not None else ()))
            table = self._stage(f"tokens/students/{system.name}", {**self._table(), "student": system.name}, inputs)
            students.append(
                Student(
                    name=system.name,
                    data=table,
                    stage=self._student(f"students/{system.name}", table, seed),
                    seed=seed,
                    learns_from=system.learns_from,
                    maker=maker,
                )
            )
        return tuple(students)

    def _table(self) -> dict[str, object]:
        keys = ("mix_easy", "objective", *LabelFilter.model_fields)
        return {f"student.{key}": getattr(self.config.student, key) for key in keys}

    def _student(self, name: str, table: Stage, seed: int) -> Stage:
        recipe = settings_of(self.config.student, "student", without=("generations", "generation_width"))
        lora = self.strong.lora.model_dump(mode="json") if self.strong.lora else None
        settings = {**recipe, **self._training(), "lora": lora, "seed": seed}
        return self._stage(name, settings, (table, self.strong.stage))

    def _evaluation(
        self,
        ensemble: Stage,
        baselines: Mapping[str, tuple[Expert, ...]],
        labels: Mapping[str, Stage],
        students: tuple[Student, ...],
    ) -> Stage:
        config = self.config
        settings = {
            **settings_of(config.evaluation, "evaluation"),
            "labeling.max_new_tokens": config.labeling.max_new_tokens,
            "labeling.precision": config.labeling.precision,
        }
        inputs = (
            self.data,
            ensemble,
            *(base.stage for base in self.weak if self.needed & {BASE_ZERO_SHOT, BASE_ENSEMBLE}),
            *(expert.stage for experts in baselines.values() for expert in experts),
            *labels.values(),
            *(student.stage for student in students),
        )
        return self._stage("evaluation", settings, inputs)
