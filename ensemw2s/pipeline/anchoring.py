"""Anchored members: what the config and the search for an anchor say goes in, how each member is mixed comes out.

Members are trained, scored and given their alphas as they are; anchoring comes after all that. It changes how they
answer, and with it the votes that are fitted on easy validation, if any are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.boosting.anchors import ANCHORS, PROMPTS, choose
from ensemw2s.boosting.consensus import PassRecord
from ensemw2s.boosting.records import ANCHOR, AnchorPoint, AnchorSearch, BoostedExpert
from ensemw2s.boosting.samme import vote_weights
from ensemw2s.data.answers import Key, answer_key
from ensemw2s.ensemble.anchor import Anchor
from ensemw2s.ensemble.voter import Voter
from ensemw2s.labeling.chunks import LabelJob
from ensemw2s.labeling.labels import label_all
from ensemw2s.labeling.parts import read_labels
from ensemw2s.pipeline.context import Context
from ensemw2s.pipeline.graph import Graph, Pass, Round
from ensemw2s.pipeline.rounds import finished_rounds
from ensemw2s.pipeline.votes import weighed_members
from ensemw2s.storage import remote, store
from ensemw2s.storage.store import read_table

TRIED = "tried"
"""Folder of the answers at every λ, until the choice is made."""


def passes_made(graph: Graph) -> list[Pass]:
    """The consensus passes that took place: those before the first one whose gate let too little through."""
    made: list[Pass] = []
    for p in graph.passes:
        if not store.is_done(p.kept.path, p.kept.description) or not PassRecord.read(p.kept.path).took_place:
            break
        made.append(p)
    return made


def final_rounds(graph: Graph) -> tuple[Round, ...]:
    """The rounds whose members are the ensemble: those of the last pass that took place."""
    made = passes_made(graph)
    return made[-1].rounds if made else graph.rounds


def scale_of(graph: Graph, rounds: Sequence[Round] | None = None) -> float:
    """λ of the members of these rounds, by default of the ensemble's; that of `auto` when it has been found.

    After a consensus pass agreement says nothing about what the members know, so `auto` is then 1.
    """
    wanted = graph.config.boosting.anchor
    if wanted != "auto":
        return wanted
    return found_anchor(graph) if (rounds or final_rounds(graph)) == graph.rounds else 1.0


def found_anchor(graph: Graph) -> float:
    """λ that the search found, of the members before any pass."""
    assert graph.anchor is not None
    return AnchorSearch.read(graph.anchor.path).anchor


def anchors_of(graph: Graph, members: Sequence[BoostedExpert], scale: float) -> list[Anchor]:
    """How each member is mixed with its own base; empty where it is not."""
    return [Anchor(graph.expert(member.name).base.reference, scale) for member in members] if scale != 1 else []


def anchored_voter(graph: Graph, members: Sequence[BoostedExpert], name: str, scale: float) -> Voter:
    """The members with a vote as an ensemble, at this λ; with their temperatures, if they have any."""
    voting = [m for m in members if m.weight > 0]
    return Voter(
        name=name,
        models=[str(graph.expert_folder(m.name).resolve()) for m in voting],
        weights=vote_weights([m.weight for m in voting]),
        rule=graph.config.ensemble.combine,
        temperatures=[m.temperature for m in voting if m.temperature is not None],
        anchor=scale,
        bases=[anchor.base for anchor in anchors_of(graph, voting, scale)],
    )


def find_anchor(context: Context) -> None:
    """Tries every λ on easy validation and on unlabelled hard prompts, and leaves the curve and the choice."""
    graph, config = context.graph, context.config
    assert graph.anchor is not None
    stage = graph.anchor
    members = weighed_members(finished_rounds(graph, graph.rounds), config.ensemble.weights)
    store.resume(stage.path, stage.description)
    easy = read_table(graph.data.path / "easy_validation.parquet")[:PROMPTS]
    hard = read_table(graph.data.path / "hard_unlabelled.parquet")[:PROMPTS]
    prompts = write_prompts(stage.path, easy, hard)
    jobs = [
        LabelJob(anchored_voter(graph, members, "ensemble", scale), prompts, _tried(stage.path, scale))
        for scale in ANCHORS
    ]
    answer(context, jobs, "anchor")
    truths = dict(zip(easy["id"].to_pylist(), easy["answer"].to_pylist(), strict=True))
    key = answer_key(config.data.answer_match)
    found = choose([_point(stage.path, scale, truths, key) for scale in ANCHORS], easy=len(easy), hard=len(hard))
    context.progress.say(said_of(found))
    found.put_file(stage.path / ANCHOR)
    for made in (stage.path / TRIED, prompts):
        remote.remove(made)
    store.finish(stage.path, stage.description)


def write_prompts(folder: Path, *tables: pa.Table) -> Path:
    """Writes prompts of several splits, whose ids differ, as one table for `answer`."""
    path = folder / "prompts.parquet"
    options = any(table["choices"].null_count < len(table) for table in tables if "choices" in table.column_names)
    columns = ["id", "prompt", *(["choices"] if options else [])]
    pq.write_table(pa.concat_tables([table.select(columns) for table in tables]), path)
    remote.push(path)
    return path


def answer(context: Context, jobs: list[LabelJob], stage: str) -> None:
    """Has prompts answered greedily, by the pool that makes labels; what is answered already is not answered again."""
    plain = {"samples": 1, "temperature": 0.0, "soft_top_k": 0, "max_rejected": None}
    label_all(
        jobs,
        data=context.graph.rendering,
        labeling=context.config.labeling.model_copy(update=plain),
        pool=context.pool,
        on_progress=lambda n, total, note: context.progress.update(stage, n, total, note),
    )


def said_of(found: AnchorSearch) -> str:
    """One line about the choice, for people."""
    curve = ", ".join(f"{p.anchor:g}: {p.accuracy:.3f} + {p.agreement:.3f}" for p in found.curve)
    why = "" if found.bases_know else ", because the untuned bases know too little"
    return f"  anchor {found.anchor:g}{why} (accuracy on easy validation + agreement on hard prompts: {curve})"


def _tried(folder: Path, scale: float) -> Path:
    return folder / TRIED / f"{scale:g}"


def _point(folder: Path, scale: float, truths: dict[str, str], key: Callable[[str], Key]) -> AnchorPoint:
    """What the ensemble did at this λ; a prompt that cannot be answered counts as wrong."""
    answers = read_labels(_tried(folder, scale)).select(["id", "answer", "agreement"]).to_pylist()
    right = [key(row["answer"]) == key(truths[row["id"]]) for row in answers if row["id"] in truths]
    agreed = [row["agreement"] for row in answers if row["id"] not in truths]
    return AnchorPoint(
        anchor=scale,
        accuracy=sum(right) / max(1, len(truths)),
        agreement=sum(agreed) / max(1, len(agreed)),
    )
