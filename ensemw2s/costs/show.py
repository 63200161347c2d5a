"""An estimate on the terminal: memory by ZeRO stage, stages with hours and money, and what the figures rest on."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ensemw2s.costs.estimate import Estimate
from ensemw2s.costs.memory import GIB


def print_estimate(found: Estimate, console: Console) -> None:
    """Prints it."""
    _say(console, "\nMemory of a process", ", GiB at its worst\n")
    console.print(_memory(found))
    _say(console, "\nWhat is left to run", f", on {found.cluster.name}\n")
    console.print(_stages(found))
    console.print()
    console.print(_bills(found))
    currency = found.cluster.prices.currency
    total = f"about {found.money:.2f} {currency}, {found.on_demand:.2f} if all nodes were on demand; "
    _say(console, "\nIn all", f"  {total}{found.seconds / 3600:.1f} hours from start to end")
    _say(console, "", _grounds(found))


def _memory(found: Estimate) -> Table:
    table = _table("Process", *(f"ZeRO {stage}" for stage in range(4)), "As configured", "There is", "Of it, largest")
    for need in found.needs:
        peaks = [f"{peak / GIB:.1f}" for peak in need.stages] or [""] * 4
        if need.stage is not None:
            peaks[need.stage] += " *"
        place = need.node.instance.gpu if need.node.gpus else "memory"
        parts = sorted(need.memory.device.items(), key=lambda item: -item[1])[:3]
        table.add_row(
            need.name,
            *peaks,
            f"{need.memory.peak / GIB:.1f}",
            f"{need.available / GIB:.1f} ({place})",
            ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts),
        )
    return table


def _stages(found: Estimate) -> Table:
    table = _table("Stage", "Work", "Nodes", "Hours", "GPU-hours", found.cluster.prices.currency)
    for row in found.rows:
        nodes = f"{row.nodes} × {row.node.kind}"
        figures = (f"{row.seconds / 3600:.2f}", f"{row.gpu_seconds / 3600:.2f}", f"{row.money:.2f}")
        table.add_row(row.name, row.what, nodes, *figures)
    hours, money = (sum(getattr(row, name) for row in found.rows) for name in ("gpu_seconds", "money"))
    table.add_row("", "work in all", "", "", f"{hours / 3600:.2f}", f"{money:.2f}")
    return table


def _bills(found: Estimate) -> Table:
    table = _table("Nodes that are paid", "At most", "Node-hours", "GPU-hours", found.cluster.prices.currency)
    for bill in found.bills:
        market = "spot" if bill.node.spot else "on demand"
        gpus = f"{bill.hours * bill.node.gpus:.2f}"
        name = f"{bill.node.name}: {bill.node.kind}, {market}"
        table.add_row(name, str(bill.nodes), f"{bill.hours:.2f}", gpus, f"{bill.money:.2f}")
    return table


def _grounds(found: Estimate) -> str:
    a, lengths = found.cluster.prices.assumptions, found.lengths
    speeds = (
        "Speeds were measured"
        if found.measured is not None
        else f"Speeds are a model: {a.training_mfu:.0%} of the peak in training, {a.reading_mfu:.0%} in reading and "
        f"scoring, {a.decoding_bandwidth:.0%} of the memory's speed in decoding"
    )
    return (
        f"\n* as configured, in the table without offload. Nodes are paid whole, with {a.startup_minutes:g} minutes "
        f"for starting and {found.cluster.idle_minutes:g} for idling; lanes that stay up keep theirs until the last "
        f"student. {speeds}. Examples have {lengths.prompt:.0f} + {lengths.answer:.0f} tokens in the mean, "
        f"{lengths.origin}; memory is for the longest that the config allows. Prices: {found.cluster.prices.as_of}."
    )


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        words = heading in ("Process", "Stage", "Work", "Nodes", "Nodes that are paid", "Of it, largest")
        table.add_column(heading, header_style="bold", justify="left" if words else "right", overflow="fold")
    return table


def _say(console: Console, heading: str, text: str) -> None:
    console.print(Text.assemble((heading, "bold"), text), soft_wrap=not text.startswith("\n*"), highlight=False)
