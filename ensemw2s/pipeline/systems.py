"""The systems of the comparison as voters: which models answer together, and with what weights.

The graph and the members of the ensemble go in; named voters come out, in groups whose models belong into memory
together.
"""

from __future__ import annotations

from collections.abc import Sequence

from ensemw2s.boosting.records import BoostedExpert
from ensemw2s.config.systems import (
    BASE_ENSEMBLE,
    BASE_ZERO_SHOT,
    ENSEMW2S,
    SEQUENCE_VOTE,
    STUDENT_EASY_ONLY,
    TABLE,
)
from ensemw2s.ensemble.voter import Voter
from ensemw2s.evaluation.voters import BASE, EXPERT, PASSES, ROUNDS, VoterGroup
from ensemw2s.pipeline.anchoring import anchored_voter, passes_made, scale_of
from ensemw2s.pipeline.graph import Graph
from ensemw2s.pipeline.rounds import finished_rounds
from ensemw2s.pipeline.specs import best_of
from ensemw2s.pipeline.votes import weighed_members
from ensemw2s.storage.store import Stage

WEAK = "weak"
"""Name of the group of all weak systems."""


def ensemble_voter(graph: Graph, members: Sequence[BoostedExpert], name: str = ENSEMW2S) -> Voter:
    """The boosted experts with a vote, by their weights; with their temperatures, if they have any."""
    return anchored_voter(graph, members, name, scale_of(graph))


def prefix_voters(graph: Graph, members: Sequence[BoostedExpert]) -> list[Voter]:
    """The ensembles of the first t rounds, for every t; rounds without a vote change nothing and are left out."""
    rounds = sorted({m.round for m in members if m.weight > 0})
    return _own(graph, [ensemble_voter(graph, [m for m in members if m.round <= t], f"{ROUNDS}{t}") for t in rounds])


def _own(graph: Graph, voters: Sequence[Voter]) -> list[Voter]:
    """Weak voters, who read with the tokenizers of their own models where these may differ."""
    return [voter.model_copy(update={"mixed": True}) for voter in voters] if graph.mixed else list(voters)


def pass_voters(graph: Graph) -> list[Voter]:
    """The ensembles before each consensus pass that took place, with votes as the labels of the pass had them."""
    made = passes_made(graph)
    before = (graph.rounds, *(p.rounds for p in made))[: len(made)]
    members = [weighed_members(finished_rounds(graph, rounds), graph.config.ensemble.weights) for rounds in before]
    scales = [scale_of(graph, rounds) for rounds in before]
    return [
        anchored_voter(graph, own, f"{PASSES}{number}", scale)
        for number, (own, scale) in enumerate(zip(members, scales, strict=True))
    ]


def baseline_voter(graph: Graph, system: str) -> Voter:
    """The untuned bases, or the experts that are trained for this system alone; several have the same weight each."""
    if system == BASE_ENSEMBLE:
        models = list(dict.fromkeys(base.reference for base in graph.weak))  # bases can differ in their adapters alone
    else:
        experts = graph.baselines[system]
        answering = [best_of(experts)] if TABLE[system].vote is None else experts
        models = [_folder(expert.stage) for expert in answering]
    if TABLE[system].vote is None:
        return one(system, *models)
    weights = [1.0 / len(models)] * len(models)
    return Voter(name=system, models=models, weights=weights, rule=graph.config.ensemble.combine)


def one(name: str, model: str) -> Voter:
    """A model alone."""
    return Voter(name=name, models=[model], weights=[1.0])


def label_maker(graph: Graph, maker: str) -> Voter:
    """Who makes the pseudo-labels of this name, a key of `Graph.all_labels`."""
    saved = {ENSEMW2S: graph.ensemble} | {generation.name: generation.ensemble for generation in graph.generations}
    if maker in saved:
        return Voter(name=maker, ensemble=_folder(saved[maker]))
    if maker == STUDENT_EASY_ONLY:
        [student] = [student for student in graph.students if student.name == maker]
        return one(maker, _folder(student.stage))
    return _own(graph, [baseline_voter(graph, maker)])[0]


def groups(graph: Graph, members: Sequence[BoostedExpert]) -> list[VoterGroup]:
    """All voters that the config's systems need on the test splits."""
    systems = graph.config.evaluation.systems
    weak = [voter for name in systems if not TABLE[name].is_student for voter in _weak_voters(graph, members, name)]
    found = [VoterGroup(name=WEAK, voters=tuple(_own(graph, weak)))] if weak else []
    students = [one(student.name, _folder(student.stage)) for student in graph.students]
    found += [VoterGroup(name=voter.name, voters=(voter,)) for voter in pass_voters(graph)]
    return found + [VoterGroup(name=student.name, voters=(student,)) for student in students]


def _weak_voters(graph: Graph, members: Sequence[BoostedExpert], system: str) -> list[Voter]:
    """The voters behind the figures of a weak system."""
    if system == BASE_ZERO_SHOT:
        return [one(f"{BASE}{base.name}", base.reference) for base in graph.weak]
    if system == SEQUENCE_VOTE:
        return [_alone(graph, m) for m in members if m.weight > 0]
    if system == ENSEMW2S:
        return [ensemble_voter(graph, members)]
    return [baseline_voter(graph, system)]


def _alone(graph: Graph, member: BoostedExpert) -> Voter:
    """A member of the ensemble as it votes there, alone."""
    voter = anchored_voter(graph, [member], f"{EXPERT}{member.name}", scale_of(graph))
    return voter.model_copy(update={"temperatures": []})


def _folder(stage: Stage) -> str:
    return str(stage.path.resolve())
