"""From a config to the graph of its run: which stages there are, what each depends on, and where it lies.

Nothing is read or run except what identifies data and models. The settings of a stage are its fingerprint: a key that
changes here makes every run that exists do the stage again. What a stage does stands in the fields of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from ensemw2s.boosting.anchors import ANCHORS
from ensemw2s.config import Config, Recipe
from ensemw2s.config.systems import (
    BAGGING,
    BASE_ENSEMBLE,
    BASE_ZERO_SHOT,
    COMPUTE_MATCHED,
    DEEP_ENSEMBLE,
    ENSEMW2S,
    EXPERT_SINGLE,
    STUDENT_EASY_ONLY,
    TABLE,
)
from ensemw2s.data.examples import derive_seed
from ensemw2s.pipeline.build_students import StudentStages
from ensemw2s.pipeline.foundations import Foundations
from ensemw2s.pipeline.graph import Base, Expert, Graph, Pass, Round, Student
from ensemw2s.pipeline.identity import FIRST_ROUND, matching, settings_of
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
        passes = self._passes(rounds, anchor)
        ensemble = self._ensemble(rounds, anchor, passes)
        labels = self._labels(ensemble, baselines)
        generations = self.learners.generations(labels[ENSEMW2S])
        students = self.learners.students(labels, generations)
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
            passes=passes,
            baselines=baselines,
            ensemble=ensemble,
            labels=labels,
            generations=generations,
            students=students,
            evaluation=self._evaluation(ensemble, baselines, labels, students),
        )

    @cached_property
    def learners(self) -> StudentStages:
        return StudentStages(
            config=self.config,
            data=self.data,
            strong=self.strong,
            training=self._training(),
            labeling=self._labeling(),
            combine=self._combine(),
            make=self._stage,
        )

    def _expert(
        self,
        name: str,
        number: int,
        settings: dict[str, object],
        *,
        epochs: int | None = None,
        after: tuple[Stage, ...] = (),
        keep: Literal["last", "best"] | None = None,
        bootstrap_examples: bool = False,
        warm_from: Stage | None = None,
        kept: Stage | None = None,
    ) -> Expert:
        """An expert.

        Args:
            name: Its stage.
            number: Its place over rounds and width, which decides on base and recipe.
            settings: What its stage depends on beside recipe, adapters, seed and the section `training`.
            epochs: Its epochs; None: those of the recipe.
            after: Stages that it reads beside its tokens and its base.
            keep: See `Expert`; None: best, if its epochs are chosen on validation.
            bootstrap_examples: See `Expert`.
            warm_from: See `Expert`.
            kept: See `Expert`.
        """
        base, recipe, chosen = self._member(number)
        keep = keep or ("best" if chosen else "last")
        if epochs is not None:
            recipe = recipe.model_copy(update={"epochs": epochs})
        seed = derive_seed(self.config.seed, name)
        described = {
            **settings_of(recipe, "expert"),
            **self._training(),
            **settings,
            **({"keep": keep} if keep == "best" else {}),
            "lora": base.lora.model_dump(mode="json") if base.lora else None,
            "seed": seed,
        }
        return Expert(
            stage=self._stage(
                name, described, (self.tokens, base.stage, *after, *([kept] if kept is not None else []))
            ),
            base=base,
            recipe=recipe,
            seed=seed,
            keep=keep,
            bootstrap_examples=bootstrap_examples,
            warm_from=warm_from,
            kept=kept,
        )

    def _member(self, number: int) -> tuple[Base, Recipe, bool]:
        """Base and recipe of the expert with this number over rounds and width, and whether its epochs are a limit."""
        members, recipe = self.config.boosting.members, self.config.expert.resolved()
        base, chosen = self.weak[number % len(self.weak)], self.config.expert.chosen
        if not members:
            return base, recipe, chosen
        member = members[number % len(members)]
        if member.model is not None:
            base = next(b for b in self.weak if b.name == member.model)
        if member.lora_rank is not None and base.lora is not None:
            base = replace(base, lora=base.lora.model_copy(update={"rank": member.lora_rank}))
        changes = {k: v for k in ("learning_rate", "epochs") if (v := getattr(member, k)) is not None}
        return base, recipe.model_copy(update=changes), chosen and member.epochs is None

    def _rounds(self, folder: str = "", kept: Stage | None = None) -> tuple[Round, ...]:
        """The rounds below this folder, whose experts learn from these kept answers, too."""
        boosting = self.config.boosting
        settings = boosting.deciding()
        if boosting.error_from == "ensemble":
            settings["ensemble.combine"] = self.config.ensemble.combine
        rounds: list[Round] = []
        for t in range(1, boosting.rounds + 1):
            experts, retries = (
                tuple(
                    self._round_expert(f"{folder}rounds/{t}/experts/{k}{suffix}", rounds, k, settings, kept)
                    for k in range(boosting.width)
                )
                for suffix in ("", "-retry")
            )
            inputs = tuple(expert.stage for expert in experts)
            stage = self._stage(f"{folder}rounds/{t}", {**settings, "round": t}, inputs)
            rounds.append(Round(t, stage, experts, retries))
        return tuple(rounds)

    def _round_expert(
        self, name: str, rounds: list[Round], k: int, settings: dict[str, object], kept: Stage | None
    ) -> Expert:
        """An expert of the round that follows these."""
        number, before = len(rounds) * self.config.boosting.width + k, rounds[-1] if rounds else None
        warm_from = None
        if before is None:  # all weights are equal, whatever is made of errors later
            settings = {f"boosting.{key}": settings[f"boosting.{key}"] for key in FIRST_ROUND}
        elif self.config.boosting.warm_start == "previous":
            warm_from = self._last_of_base(rounds, k, number)
            if warm_from is not before.experts[k].stage:  # what it starts from was the only choice once
                settings = {**settings, "warm_from": warm_from.name if warm_from is not None else None}
        return self._expert(
            name,
            number,
            settings,
            after=(before.stage,) if before else (),
            warm_from=warm_from,
            kept=kept,
        )

    def _last_of_base(self, rounds: list[Round], k: int, number: int) -> Stage | None:
        """The last expert so far of this expert's base; of several in a round, that in place `k` if it is one."""
        base = self._member(number)[0].name
        for r in reversed(rounds):
            own = [expert.stage for expert in (r.experts[k], *r.experts) if expert.base.name == base]
            if own:
                return own[0]
        return None

    def _passes(self, rounds: tuple[Round, ...], anchor: Stage | None) -> tuple[Pass, ...]:
        """The consensus passes; each begins with what the members of the one before it answer."""
        consensus = self.config.consensus
        answering: dict[str, object] = {
            **self._answering(),
            "consensus.anchor": consensus.anchor,
            "consensus.agreement": consensus.agreement,
            "consensus.judge": consensus.judge != "none",
        }
        keeping = settings_of(consensus, "consensus", without=("passes", "anchor")) | matching(self.config.data)
        passes: list[Pass] = []
        for number in range(1, consensus.passes + 1):
            folder, before = f"consensus/{number}", passes[-1].rounds if passes else rounds
            inputs = (before[-1].stage, *([anchor] if anchor is not None else []))
            answers = self._stage(f"{folder}/answers", answering, (self.data, *inputs))
            kept = self._stage(f"{folder}/kept", keeping, (self.data, self.tokens, answers))
            passes.append(Pass(number=number, answers=answers, kept=kept, rounds=self._rounds(f"{folder}/", kept)))
        return tuple(passes)

    def _answering(self) -> dict[str, object]:
        """How the boosted members answer together before the ensemble is made."""
        return {
            **self._combine(),
            "ensemble.weights": "uniform" if self.config.ensemble.weights == "uniform" else "alpha",
            "labeling.max_new_tokens": self.config.labeling.max_new_tokens,
            "labeling.precision": self.config.labeling.precision,
        }

    def _baselines(self) -> dict[str, tuple[Expert, ...]]:
        """The experts that are trained for one system alone, of those systems that are needed."""
        makers: dict[str, Callable[[str], tuple[Expert, ...]]] = {
            EXPERT_SINGLE: self._single,
            COMPUTE_MATCHED: self._matched,
            BAGGING: partial(self._team, drawn=True),
            DEEP_ENSEMBLE: self._team,
        }
        needed = self.needed | ({EXPERT_SINGLE} if COMPUTE_MATCHED in self.needed and self._candidates else set())
        return {name: make(f"baselines/{name}") for name, make in makers.items() if name in needed}

    @cached_property
    def _candidates(self) -> tuple[int, ...]:
        """Number of the first expert from each base of the ensemble; none where there is nothing to choose from."""
        if self.config.evaluation.single_base == "first":
            return ()
        first: dict[str, int] = {}
        for number in range(self._members):
            first.setdefault(self._member(number)[0].name, number)
        return tuple(first.values()) if len(first) > 1 else ()

    def _single(self, name: str) -> tuple[Expert, ...]:
        if self._candidates:
            return tuple(self._single_of(f"{name}/{self._member(n)[0].name}", n) for n in self._candidates)
        return (self._single_of(name, 0),)

    def _single_of(self, name: str, number: int) -> Expert:
        _, recipe, chosen = self._member(number)
        epochs = self.config.evaluation.single_max_epochs or recipe.epochs * (1 if chosen else 2)
        return self._expert(name, number, {}, epochs=epochs, keep="best")

    def _matched(self, name: str) -> tuple[Expert, ...]:
        """The epochs of all experts together; what passes read on top counts as if every pass took place."""
        consensus, sizes = self.config.consensus, self.config.data.sizes
        more = consensus.passes * (1 + consensus.fraction * sizes.hard_unlabelled / sizes.easy_train)
        budget = round((1 + more) * sum(self._member(number)[1].epochs for number in range(self._members)))
        if not self._candidates:
            return (self._expert(name, 0, {}, epochs=budget, keep="last"),)
        singles = self._single(f"baselines/{EXPERT_SINGLE}")
        after = tuple(single.stage for single in singles)
        matched = self._expert(name, 0, {"single_base": "best"}, epochs=budget, keep="last", after=after)
        return (replace(matched, best_of=singles),)

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
        consensus = self.config.consensus
        if self.config.boosting.anchor != "auto" and not (consensus.passes and consensus.anchor == "auto"):
            return None
        settings = {**self._answering(), "anchors": list(ANCHORS), **matching(self.config.data)}
        return self._stage("anchor", settings, (self.data, rounds[-1].stage))

    def _ensemble(self, rounds: tuple[Round, ...], anchor: Stage | None, passes: tuple[Pass, ...]) -> Stage:
        """The rounds lead to the tokens of easy validation, on which votes may be fitted."""
        ensemble = self.config.ensemble
        settings: dict[str, object] = {f"ensemble.{key}": value for key, value in ensemble.deciding().items()}
        settings["boosting.rounds"] = self.config.boosting.rounds
        if ensemble.fitted:
            settings["labeling.precision"] = self.config.labeling.precision
        if self.config.boosting.anchor != 1:
            settings["boosting.anchor"] = self.config.boosting.anchor
        last = passes[-1].rounds if passes else rounds
        inputs = (last[-1].stage, *([anchor] if anchor is not None else []))
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
        return labels | ({STUDENT_EASY_ONLY: own} if (own := self.learners.own_labels) is not None else {})

    def _labeling(self) -> dict[str, object]:
        deciding = {f"labeling.{key}": value for key, value in self.config.labeling.deciding().items()}
        return deciding | (matching(self.config.data) if self.config.labeling.samples > 1 else {})

    def _combine(self) -> dict[str, object]:
        return {"ensemble.combine": self.config.ensemble.combine}

    def _evaluation(
        self,
        ensemble: Stage,
        baselines: Mapping[str, tuple[Expert, ...]],
        labels: Mapping[str, Stage],
        students: tuple[Student, ...],
    ) -> Stage:
        config = self.config
        chosen = self._candidates and EXPERT_SINGLE in baselines  # where it changes anything; older runs had no choice
        without = () if chosen else ("single_base",)
        settings = {
            **settings_of(config.evaluation, "evaluation", without=without),
            **matching(config.data),
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
