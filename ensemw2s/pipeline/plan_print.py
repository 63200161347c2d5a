"""A plan on the terminal: a table of stages with state and size, the resources, and what `run` would do."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ensemw2s.cluster.resources import ResourcePlan, Resources
from ensemw2s.pipeline.plan import Item, Plan, times
from ensemw2s.pipeline.survey import StageState


def print_plan(
    plan: Plan,
    console: Console,
    *,
    resources: Resources,
    division: ResourcePlan,
    free_bytes: int | None,
    address: str | None,
    more: Mapping[str, str] | None = None,
) -> None:
    """Prints a plan.

    Args:
        plan: What would run.
        console: Where to print.
        resources: What there is.
        division: How it would be divided.
        free_bytes: Bytes free on the disk of the run; None where it is not a disk of this machine.
        address: Address of the cluster that was asked; None where the resources are those of this machine.
        more: Further lines below the resources, by their heading.
    """
    _line(console, plan.config.name, f", seed {plan.config.seed}, in {plan.where}\n")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("Stage", "State", "Size"):
        table.add_column(heading, overflow="fold", header_style="bold")
    for item in plan.items:
        state = _state_of(item, plan.found)
        table.add_row(Text(item.name), Text(state, _STYLES.get(state, "")), Text(item.what))
    console.print(table)
    for name, found in plan.found.items():
        if found.detail:
            _line(console, f"\n{name}", f"  {found.state}: {found.detail}")
    t, d = plan.config.training, plan.config.labeling
    worker = (
        f"{t.workers} worker{'s' if t.workers.max != 1 else ''} of {t.cpus_per_worker:g} CPUs, "
        f"{t.gpus_per_worker:g} GPUs"
    )
    together = "beside the lanes" if division.keep_lanes else "in turn with the lanes"
    place = f"the cluster at {address}" if address is not None else "this machine"
    room = "here for copies of storage" if "://" in plan.where else "in storage"
    free = "" if free_bytes is None else f", {free_bytes / 1e9:.1f} GB free {room}"
    _line(console, "\nResources", f"  {place}: {resources}{free}")
    _line(
        console, "Training", f"   {times(division.lanes, 'lane')} at a time, each {worker}, ZeRO stage {t.zero_stage}"
    )
    actor = f"of {d.cpus_per_actor:g} CPUs, {d.gpus_per_actor:g} GPUs"
    count = (
        times(division.actors, "actor")
        if d.min_actors == division.actors
        else f"{d.min_actors} to {division.actors} actors"
    )
    _line(console, "Decoding", f"   {count} {actor}, {together}")
    for heading, text in (more or {}).items():
        _line(console, heading, f"{'':{11 - len(heading)}}{text}")
    _line(console, "", f"\n{_verdict(plan)}")


_STYLES = {
    "done": "green",
    "given": "green",
    "to do": "yellow",
    "changed": "bold red",
    "not needed": "dim",
    "freed": "dim",
}


def _state_of(item: Item, found: dict[str, StageState]) -> str:
    """State of a line in a word or two."""
    if item.given:
        return "given"
    each = [found[stage.name].state for stage in item.stages]
    for state in ("changed", "to do", "not needed", "freed", "done"):
        number = each.count(state)
        if number == len(each):
            return state
        if number and state == "to do":
            return f"{each.count('done')} of {len(each)} done"
        if number:
            return f"{number} of {len(each)} {state}"
    raise AssertionError(f"{item.name} has no stages")


def _verdict(plan: Plan) -> str:
    """What `run` would do, in a sentence."""
    done, changed, waiting = len(plan.names("done")), len(plan.names("changed")), len(plan.names("to do"))
    models, steps = plan.left()
    work = f"{times(waiting + changed, 'stage')} to do, {times(models, 'model')} to train in {steps} steps"
    if changed:
        were, them = ("was", "it") if changed == 1 else ("were", "them")
        return (
            f"`run` would refuse: {times(changed, 'stage')} here {were} made with another config. Give this run "
            f"another name, or `run --fresh` deletes {them} and goes on with {work}; {done} would be reused."
        )
    if plan.complete:
        freed = len(plan.names("freed"))
        gone = f" {times(freed, 'stage')} that were freed stay so." if freed else ""
        return f"Everything is done: `run` would only print the results again.{gone}"
    return f"`run` would reuse {times(done, 'stage')}; {work}." if done else f"Nothing is done yet: {work}."


def _line(console: Console, heading: str, text: str) -> None:
    """Prints a line without wrapping it, and without reading markup in the user's text."""
    console.print(Text.assemble((heading, "bold"), text), soft_wrap=True, highlight=False)
