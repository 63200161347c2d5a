"""The systems of the comparison as voters: which models answer together, with what weights, and how costly they were.

The graph and the rounds' facts go in; named voters come out, in groups whose models belong into memory together.
"""

from __future__ import annotations

from collections.abc import Sequence

from ensemw2s.boosting.records import Member
from ensemw2s.boosting.samme import vote_weights
from ensemw2s.ensemble.voter import Voter
from ensemw2s.evaluation.voters import BASE, EXPERT, ROUNDS, VoterGroup
from ensemw2s.pipeline.graph import Expert, Graph


def member_paths(graph: Graph, members: Sequence[Member]) -> list[str]:
    """Folders of boosted experts."""
    return [str(graph.expert_folder(member.name).resolve()) for member in members]


def ensemble_voter(graph: Graph, members: Sequence[Member], name: str = "ensemw2s") -> Voter:
    """The boosted experts with a vote, by their weights; with their temperatures, if they have any."""
    voting = [m for m in members if m.weight > 0]
    return Voter(
        name=name,
        models=member_paths(graph, voting),
        weights=vote_weights([m.weight for m in voting]),
        rule=graph.config.ensemble.combine,
        temperatures=[m.temperature for m in voting if m.temperature is not None],
    )


def prefix_voters(graph: Graph, members: Sequence[Member]) -> list[Voter]:
    """The ensembles of the first t rounds, for every t; rounds without a vote change nothing and are left out."""
    rounds = sorted({m.round for m in members if m.weight > 0})
    return [ensemble_voter(graph, [m for m in members if m.round <= t], f"{ROUNDS}{t}") for t in rounds]


def bagging_voter(graph: Graph) -> Voter:
    """The bagged experts, all with the same weight."""
    models = [_path(expert) for expert in graph.bagging]
    weights = [1.0 / len(models)] * len(models)
    return Voter(name="bagging", models=models, weights=weights, rule=graph.config.ensemble.combine)


def one(name: str, path: str) -> Voter:
    """A model alone."""
    return Voter(name=name, models=[path], weights=[1.0])


def label_maker(graph: Graph, maker: str) -> Voter:
    """Who makes the pseudo-labels of this name."""
    if maker == "ensemw2s":
        return Voter(name=maker, ensemble=str(graph.ensemble.path.resolve()))
    if maker == "bagging":
        return bagging_voter(graph)
    for generation in graph.generations:
        if maker == generation.name:
            return Voter(name=maker, ensemble=str(generation.ensemble.path.resolve()))
    assert graph.single is not None
    return one(maker, _path(graph.single))


def groups(graph: Graph, members: Sequence[Member]) -> list[VoterGroup]:
    """All voters that the config's systems need on the test splits."""
    systems = graph.config.evaluation.systems
    weak: list[Voter] = []
    if "base_zero_shot" in systems:
        weak += [one(f"{BASE}{base.name}", _location(base.reference)) for base in graph.weak]
    if "expert_single" in systems and graph.single is not None:
        weak.append(one("expert_single", _path(graph.single)))
    if "expert_compute_matched" in systems and graph.compute_matched is not None:
        weak.append(one("expert_compute_matched", _path(graph.compute_matched)))
    if "bagging" in systems:
        weak.append(bagging_voter(graph))
    if "sequence_vote" in systems:
        voting = [m for m in members if m.weight > 0]
        weak += [one(f"{EXPERT}{m.name}", path) for m, path in zip(voting, member_paths(graph, voting), strict=True)]
    if "ensemw2s" in systems:
        weak.append(ensemble_voter(graph, members))
    found = [VoterGroup(name="weak", voters=tuple(weak))] if weak else []
    for student in graph.students:
        if student.name in systems:
            voter = one(student.name, str(student.stage.path.resolve()))
            found.append(VoterGroup(name=student.name, voters=(voter,)))
    return found


def _path(expert: Expert) -> str:
    return str(expert.stage.path.resolve())


def _location(path: str) -> str:
    from pathlib import Path

    return str(Path(path).expanduser().resolve()) if Path(path).expanduser().exists() else path
