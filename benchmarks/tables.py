"""Writes the tables of docs/benchmarks.md from the JSON in benchmarks/results.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def decode_table(result: dict[str, Any]) -> list[str]:
    """Lines of Markdown for one result of decode.py."""
    machine = result["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    kind = {"lora": "LoRA members", "full": "full members"}[result["kind"]]
    lines = [
        f"**{result['base']}, {kind}, {result['dtype']}** · {where} · torch {machine['torch']} · "
        f"{result['new_tokens']} new tokens, median of {result['turns']} turns",
        "",
        "| T | batch | standard | one alone | engine | engine / standard | engine / alone | n-gram drafts / standard "
        "| member drafts / standard | accepted |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        speed, acceptance = row["tokens_per_second"], row["acceptance"]
        shares = ", ".join(f"{value:.0%}" for value in acceptance.values() if value is not None)
        lines.append(
            f"| {row['members']} | {row['batch']} | {speed['standard']:.1f} | {speed['alone']:.1f} "
            f"| {speed['engine']:.1f} | **{row['engine_over_standard']:.2f}** | {row['engine_over_alone']:.2f} "
            f"| {row['engine_ngram_over_standard']:.2f} | {row['engine_member_over_standard']:.2f} | {shares} |"
        )
    if mixed := result["mixed_lengths"]:
        seconds = mixed["seconds"]
        lines += [
            "",
            f"{mixed['prompts']} prompts, {mixed['new_tokens'][0]} to {mixed['new_tokens'][1]} new tokens each, "
            f"{mixed['slots']} slots: batches that wait for their longest row {seconds['waiting']:.1f} s; refilled "
            f"slots in the order of arrival {seconds['first_come']:.1f} s "
            f"(**{mixed['first_come_over_waiting']:.2f}** times as fast), longest first {seconds['continuous']:.1f} s "
            f"(**{mixed['continuous_over_waiting']:.2f}**).",
        ]
    return [*lines, ""]


def answers_table(result: dict[str, Any], what: str, where: str) -> list[str]:
    """Logits of answers against those of all tokens."""
    whole, some = result["rows"]
    lines = [
        f"**{result['base']}, {what}** · {where} · batches of {result['batch_size']} × {result['tokens']} tokens, "
        f"{result['answer']} of them answers{', gradient checkpointing' if result['gradient_checkpointing'] else ''} · "
        f"turns: {result['turns']}",
        "",
        "| | logits of all tokens | of answers | ratio |",
        "|---|---|---|---|",
    ]
    if "tokens_per_second" in whole:
        rates = whole["tokens_per_second"], some["tokens_per_second"]
        lines.append(f"| tokens a second | {rates[0]:.0f} | {rates[1]:.0f} | **{rates[1] / rates[0]:.2f}** |")
    peaks = whole["peak_bytes"], some["peak_bytes"]
    lines.append(f"| peak memory, GB | {peaks[0] / 1e9:.1f} | {peaks[1] / 1e9:.1f} | **{peaks[0] / peaks[1]:.2f}** |")
    return [*lines, ""]


def train_table(result: dict[str, Any]) -> list[str]:
    """The same for a result of train.py."""
    machine = result["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    if "rounds" in result:
        lines = [
            f"**Rounds of {result['run']}** · seconds · {where}",
            "",
            "| round | in all | in the training loop | starting, waiting for a lane | scoring "
            "| weights, votes, writing "
            "| share of scoring |",
            "|---|---|---|---|---|---|---|",
        ]
        names = ("round", "seconds", "in_the_training_loop", "starting_and_waiting_for_lanes", "scoring")
        for row in result["rounds"]:
            cells = [*(str(row[name]) for name in names), str(row["weights_votes_writing"])]
            lines.append(f"| {' | '.join(cells)} | **{row['scoring_share']:.0%}** |")
        return [*lines, ""]
    what = f"LoRA of rank {result['lora']}" if result["lora"] else "all weights"
    if "answer" in result:
        return answers_table(result, what, where)
    lines = [
        f"**{result['base']}, {what}** · {where} · torch {machine['torch']} · batches of {result['batch_size']} × "
        f"{result['tokens']} tokens, median of {result['turns']} turns",
        "",
        "| loop | seconds a step | tokens a second | over bare |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        name = row["way"].replace("_", " ").replace("zero", "ZeRO")
        lines.append(
            f"| {name} | {row['seconds_a_step']:.4f} | {row['tokens_per_second']:.0f} | **{row['over_bare']:.2f}** |"
        )
    return [*lines, ""]


def lanes_table(result: dict[str, Any]) -> list[str]:
    """The same for a result of lanes.py."""
    lines = [
        f"**{result['base']}, {result['experts']} experts of {result['steps']} steps** · {result['machine']['cpu']}, "
        f"{result['cpus']} CPUs · batches of {result['batch_size']} × {result['tokens']} tokens, median of "
        f"{result['turns']} turns",
        "",
        "| experts at a time | workers each | seconds | of these in the loops | tokens a second | over one | start |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        seconds = row["seconds"]
        lines.append(
            f"| {row['experts_at_a_time']} | {row['workers_each']} | {seconds['trainings']:.1f} "
            f"| {seconds['in_the_training_loop']:.1f} | {row['tokens_per_second']:.0f} | **{row['over_one']:.2f}** "
            f"| {seconds['start']:.1f} |"
        )
    return [*lines, ""]


def label_table(result: dict[str, Any]) -> list[str]:
    """The same for a result of label.py."""
    rates, (small, large) = result["tokens_per_second"], result["memory"]
    actors = str(result["actors"])
    flat = [
        f"| {row['prompts']} | {row['seconds']:.0f} | {row['peak_gib']:.2f} GiB "
        f"| {row['seconds_when_finished']:.1f} s |"
        for row in (small, large)
    ]
    return [
        f"**{result['prompts']} prompts, batches of {result['batch_size']}, at most {result['new_tokens']} new "
        f"tokens** · {result['machine']['cpu']} · median of {result['turns']} turns",
        "",
        "| | tokens a second | ratio |",
        "|---|---|---|",
        f"| bare engine, one thread | {rates['engine']:.0f} | |",
        f"| stream, 1 actor | {rates['1']:.0f} | **{result['stream_over_engine']:.2f}** of the bare engine |",
        f"| stream, {actors} actors | {rates[actors]:.0f} | **{result['actors_over_one']:.2f}** of one actor |",
        "",
        "| prompts | seconds in all | peak of memory, all processes | the same command when finished |",
        "|---|---|---|---|",
        *flat,
        "",
        f"{large['prompts'] / small['prompts']:.0f} times the prompts: **{result['memory_growth']:+.1%}** memory.",
        "",
    ]


def serve_table(result: dict[str, Any]) -> list[str]:
    """The same for a result of serve.py."""
    machine, mixed = result["machine"], result["beside_a_long_request"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"

    def three(name: str, row: dict[str, Any]) -> str:
        return " / ".join(f"{row[name][p]:.0f}" for p in ("p50", "p95", "p99"))

    rows = [
        f"| {row['streams']} | {row['tokens_per_second']['engine']:.0f} | {row['tokens_per_second']['served']:.0f} "
        f"| **{row['served_over_engine']:.2f}** | {three('time_to_first_token_ms', row)} "
        f"| {three('between_tokens_ms', row)} |"
        for row in result["rows"]
    ]
    costs = [
        f"| {row['streams']} | {row['tokens_of_an_answer']:.0f} in {row['pieces_of_an_answer']:.0f} pieces | "
        + " | ".join(f"{row['cpu_ms_a_request'][name]:.1f}" for name in COSTS)
        + f" | {row['cpu_ms_a_request']['bare engine'] / row['cpu_ms_a_request']['replica']:.2f} |"
        for row in result["rows"]
    ]
    return [
        f"**{result['base']}, {result['members']} {result['kind']} members** · {where} · torch {machine['torch']} · "
        f"{result['slots']} slots, {result['new_tokens']} new tokens in the mean, a piece every "
        f"{result['stream_interval']:g} s, median of {result['turns']} turns",
        "",
        "| streams | bare engine, tokens a second | served | served / engine | first token, ms p50 / p95 / p99 "
        "| between tokens, ms p50 / p95 / p99 |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"| streams | tokens of an answer | CPU ms of an answer: {' | '.join(COSTS)} | engine / replica |",
        "|---" * (len(COSTS) + 3) + "|",
        *costs,
        "",
        f"Answers of {mixed['short_tokens']} tokens while one of {mixed['long_tokens']} runs: p50 / p95 / p99 of "
        f"{three('beside_ms', mixed)} ms, and {three('alone_ms', mixed)} ms without it.",
        "",
    ]


COSTS = ("bare engine", "replica", "front", "clients", "rest")


def costs_table(result: dict[str, Any]) -> list[str]:
    """The same for a result of costs.py."""
    machine, peak = result["machine"], result["peak"]
    reached = ", ".join(
        f"{p['tflops'] * 1000:.0f} GFLOP/s and {p['gb_per_second']:.1f} GB/s with {n} thread{'s' if n != '1' else ''}"
        for n, p in peak.items()
    )
    rows = [
        f"| {row['what']} | {row['measured']:.0f} | {row['model']:.0f} | **{row['ratio']:.2f}** |"
        for row in result["rows"]
    ]
    return [
        f"**Tokens a second, float32** · {machine['cpu']} · torch {machine['torch']} · {reached}",
        "",
        "| | measured | model | model / measured |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


KINDS = (
    ("decode", decode_table),
    ("train", train_table),
    ("lanes", lanes_table),
    ("label", label_table),
    ("serve", serve_table),
    ("costs", costs_table),
)


def main() -> None:
    """Replaces what stands between the marks."""
    for kind, table in KINDS:
        replace(
            kind,
            [
                line
                for path in sorted((HERE / "results").glob(f"{kind}-*.json"))
                for line in table(json.loads(path.read_text()))
            ],
        )


def replace(kind: str, lines: list[str]) -> None:
    """Puts lines between the marks of a kind."""
    page = HERE.parent / "docs" / "benchmarks.md"
    first, last = f"<!-- {kind} tables -->", f"<!-- end of {kind} tables -->"
    text = page.read_text(encoding="utf-8")
    body = f"{first}\n\n" + "\n".join(lines) + f"\n{last}"
    page.write_text(
        re.sub(re.escape(first) + ".*?" + re.escape(last), lambda _: body, text, flags=re.S), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
