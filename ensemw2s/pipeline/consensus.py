"""Consensus passes: members answer unlabelled hard prompts, and are boosted anew on what they agree on as well.

Every part of a pass is a stage, so a run that was killed goes on inside it. Hard labels are read nowhere here: the
graph's data has the prompts alone, and what is right is known of easy validation answers only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.boosting.consensus import ALONE, TRUSTED, PassRecord, gate, keep, knows
from ensemw2s.boosting.records import BoostedExpert, RoundRecord
from ensemw2s.config.systems import ENSEMW2S
from ensemw2s.data.answers import Key, answer_key
from ensemw2s.data.tokens import WEIGHT, tokenize_examples
from ensemw2s.ensemble.voter import Voter
from ensemw2s.evaluation.records import PassResult
from ensemw2s.evaluation.results import Figures, share_right
from ensemw2s.evaluation.voters import PASSES
from ensemw2s.labeling.chunks import LabelJob
from ensemw2s.labeling.parts import read_labels
from ensemw2s.models.tokenizers import load_tokenizer
from ensemw2s.pipeline.anchoring import anchored_voter, answer, found_anchor, passes_made, write_prompts
from ensemw2s.pipeline.context import Context
from ensemw2s.pipeline.graph import Graph, Pass, Round
from ensemw2s.pipeline.rounds import each_round, finished_rounds
from ensemw2s.pipeline.specs import TRAIN
from ensemw2s.pipeline.votes import weighed_members
from ensemw2s.storage import remote, store
from ensemw2s.storage.store import read_table

ANSWERS = "kept.parquet"
"""Table of the answers that a pass keeps: id, prompt, answer, agreement."""

BASES = "bases"
"""The untuned bases as a second judge, and the folder of their answers."""


def run_passes(context: Context) -> None:
    """Makes the passes that are not done yet, up to the first one whose gate lets too little through."""
    for _ in each_pass(context):
        pass


def each_pass(context: Context) -> Iterator[tuple[PassRecord, list[RoundRecord]]]:
    """Makes the passes, and gives the record of each with those of its rounds, done before or not.

    The last one may be a pass that does not take place; it has no rounds.
    """
    rounds = context.graph.rounds
    for p in context.graph.passes:
        with store.alone(p.kept.path) if context.graph.shared else nullcontext():
            if not store.is_done(p.kept.path, p.kept.description):
                if not store.is_done(p.answers.path, p.answers.description):
                    with context.stage(p.answers.name, "what the members answer to hard prompts"):
                        _make_answers(context, p, rounds)
                with context.stage(p.kept.name, "the answers that they agree on"):
                    _make_kept(context, p)
        record = PassRecord.read(p.kept.path)
        context.progress.say(said_of(record))
        history: list[RoundRecord] = []
        if record.took_place:
            for found in each_round(context, p.rounds):
                history = found
        yield record, history
        if not record.took_place:
            return
        rounds = p.rounds


def said_of(record: PassRecord) -> str:
    """One line about what a pass keeps, for people."""
    judge = " that the untuned bases give, too," if record.judge == BASES else ""
    gate_of = f"easy validation answers{judge} of the highest agreement are right in {record.best:.1%} of the cases"
    if record.took_place:
        return (
            f"  pass {record.number}: {record.kept} of {record.prompts} hard answers kept, {record.passing} passed the "
            f"gate (agreement of {record.threshold:.3f}; {gate_of}, those that pass in {record.precision:.1%})"
        )
    return (
        f"  pass {record.number}: no pass, because {record.passing} of {record.prompts} hard answers pass the gate; a "
        f"tenth must ({gate_of}, {record.needed:.1%} are needed to pass). The ensemble stays as it was"
    )


def _make_answers(context: Context, p: Pass, rounds: tuple[Round, ...]) -> None:
    """Has the ensemble answer easy validation and hard prompts; its bases and each member, too, if asked for."""
    graph, config = context.graph, context.config
    wanted = config.consensus.anchor
    scale = found_anchor(graph) if wanted == "auto" else wanted
    members = weighed_members(finished_rounds(graph, rounds), config.ensemble.weights)
    store.resume(p.answers.path, p.answers.description)
    splits = [read_table(graph.data.path / f"{name}.parquet") for name in _SPLITS]
    prompts = write_prompts(p.answers.path, *splits)
    voters = [anchored_voter(graph, members, "ensemble", scale)]
    if config.consensus.judge != "none":
        voters.append(anchored_voter(graph, members, BASES, 0.0))
    if config.consensus.agreement == "answer":
        voters += _alone(graph, members, scale)
    answer(context, [LabelJob(v, prompts, p.answers.path / v.name) for v in voters], p.answers.name)
    store.finish(p.answers.path, p.answers.description)


_SPLITS = ("easy_validation", "hard_unlabelled")


def _alone(graph: Graph, members: Sequence[BoostedExpert], scale: float) -> list[Voter]:
    """Each member with a vote, by itself."""
    voting = [member for member in members if member.weight > 0]
    return [anchored_voter(graph, [member], f"member-{k}", scale) for k, member in enumerate(voting)]


@dataclass(frozen=True)
class _Answer:
    """The ensemble's answer to one prompt.

    Attributes:
        agreed: How far its members agree on it.
        usable: It ended by itself and is not empty.
        seconded: The second judge, if it was asked, gives the same one.
        right: Known of easy validation alone.
        judge_right: Whether the judge's own answer is; False where it was not asked.
    """

    id: str
    prompt: str
    answer: str
    agreed: float
    usable: bool
    seconded: bool
    right: bool = False
    judge_right: bool = False


def _make_kept(context: Context, p: Pass) -> None:
    """Ranks the answers by agreement, and writes those that pass as a table of tokens, with the record of the pass."""
    graph, config = context.graph, context.config
    wanted, consensus = config.consensus.anchor, config.consensus
    easy, hard = _answers(graph, p.answers.path, consensus.agreement, answer_key(config.data.answer_match))
    accuracy = _share([row.right for row in easy])
    asked = consensus.judge == "auto" and knows(_share([row.judge_right for row in easy]), accuracy)
    judged = consensus.judge == BASES or asked
    known = [row for row in easy if row.seconded or not judged]
    found = gate(
        [row.agreed for row in known],
        [row.right for row in known],
        consensus.min_precision,
        TRUSTED if judged else ALONE,
    )
    usable = [row.usable and (row.seconded or not judged) for row in hard]
    chosen = keep([row.agreed for row in hard], usable, found.threshold, consensus.fraction)
    kept = pa.Table.from_pylist([asdict(hard[place]) for place in chosen.places], schema=_KEPT)
    record = PassRecord(
        number=p.number,
        anchor=found_anchor(graph) if wanted == "auto" else wanted,
        agreement=consensus.agreement,
        judge=BASES if judged else "none",
        seconded=_share([row.seconded for row in hard]) if judged else None,
        validation=len(easy),
        accuracy=accuracy,
        best=found.best,
        needed=found.needed,
        threshold=found.threshold,
        precision=found.precision,
        prompts=len(hard),
        passing=chosen.passing,
        kept=len(kept),
    )
    base = graph.weak[0]
    tokens = tokenize_examples(kept, load_tokenizer(base.path, base.revision), context.graph.rendering)
    tokens = tokens.append_column(WEIGHT, pa.array(np.full(len(tokens), consensus.weight)))
    with store.publish(p.kept.path, p.kept.description) as folder:
        pq.write_table(kept, folder / ANSWERS)
        pq.write_table(tokens, folder / TRAIN)
        record.write(folder)


_KEPT = pa.schema([("id", pa.string()), ("prompt", pa.string()), ("answer", pa.string()), ("agreed", pa.float64())])


def _answers(graph: Graph, folder: Path, kind: str, key: Callable[[str], Key]) -> tuple[list[_Answer], list[_Answer]]:
    """What the ensemble answers to easy validation and to hard prompts; `key` says which answers are the same one."""
    easy = read_table(graph.data.path / "easy_validation.parquet", ["id", "answer"])
    truths = dict(zip(easy["id"].to_pylist(), map(key, easy["answer"].to_pylist()), strict=True))
    names = remote.names(folder)
    judge = _own(folder / BASES, key) if BASES in names else {}
    members = [_own(folder / name, key) for name in sorted(names) if name.startswith("member-")]
    found: tuple[list[_Answer], list[_Answer]] = ([], [])
    for row in read_labels(folder / "ensemble").to_pylist():
        identity, said = row["id"], key(row["answer"])
        known = identity in truths
        agreed = (
            min(row["token_agreement"], default=0.0)
            if kind == "token"
            else sum(own.get(identity) == said for own in members) / len(members)
        )
        answer = _Answer(
            id=identity,
            prompt=row["prompt"],
            answer=row["answer"],
            agreed=agreed,
            usable=row["finish_reason"] == "stop" and row["answer"] != "",
            seconded=judge.get(identity) == said,
            right=known and said == truths[identity],
            judge_right=known and judge.get(identity) == truths[identity],
        )
        found[0 if known else 1].append(answer)
    return found


def _own(folder: Path, key: Callable[[str], Key]) -> dict[str, Key]:
    """What one voter answers to each prompt."""
    answers = read_labels(folder).select(["id", "answer"]).to_pylist()
    return {row["id"]: key(row["answer"]) for row in answers}


def _share(happens: Sequence[bool]) -> float:
    return sum(happens) / max(1, len(happens))


def pass_results(graph: Graph, figures: Figures, hard_labels: pa.Table) -> tuple[PassResult, ...]:
    """Every pass up to the first that did not take place, with the ensemble that came out of it."""
    made = passes_made(graph)
    found = [PassResult(number=0, ensemble=figures.of_voter(f"{PASSES}0" if made else ENSEMW2S))]
    for p in graph.passes[: len(made) + 1]:
        record = PassRecord.read(p.kept.path)
        voter = f"{PASSES}{p.number}" if p.number < len(made) else ENSEMW2S
        found.append(
            PassResult(
                number=p.number,
                ensemble=figures.of_voter(voter) if record.took_place else None,
                record=record,
                right=share_right(read_table(p.kept.path / ANSWERS), hard_labels, figures.key)
                if record.took_place
                else None,
            )
        )
    return tuple(found)
