"""Rows that became no example, counted by reason: what a source and the limits put aside goes in, sentences come out.

Its own module because the log, the errors, the results and the report say the same of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ensemw2s.storage.record import Record

SHOWN = 5
"""Conflicts that are named; the others are counted."""


class Dropped(Record):
    """How many rows of the sources are in no split, by reason. Rows that no split had room for do not count.

    Attributes:
        repeated: Rows whose prompt an earlier row has, too.
        conflicting: Of these, rows with another answer than the earlier one.
        conflicts: The first of the conflicting rows, in words.
        unmatched: Rows that the source's `where` leaves out.
        too_long: Rows that are longer than the limits or a model's context (`data.too_long: drop`).
        unreadable: Rows with text that a tokenizer does not give back (`data.unreadable: drop`).
    """

    repeated: int = 0
    conflicting: int = 0
    conflicts: tuple[str, ...] = ()
    unmatched: int = 0
    too_long: int = 0
    unreadable: int = 0

    def __bool__(self) -> bool:
        return any((self.repeated, self.unmatched, self.too_long, self.unreadable))

    def sentences(self) -> list[str]:
        """What was dropped and why, a sentence for each reason."""
        said = []
        if self.repeated:
            other = f", {self.conflicting} of them with another answer" if self.conflicting else ""
            said.append(f"{_rows(self.repeated)} dropped because an earlier row has the same prompt{other}.")
        said += [f"{conflict}." for conflict in self.conflicts]
        for n, why in (
            (self.unmatched, "by the source's where"),
            (self.too_long, "for being too long (data.too_long)"),
            (self.unreadable, "for text that a tokenizer cannot give back (data.unreadable)"),
        ):
            if n:
                said.append(f"{_rows(n)} dropped {why}.")
        return said


@dataclass
class Tally:
    """Counts rows while they are dropped."""

    counts: dict[str, int] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)

    def add(self, reason: str, n: int = 1) -> None:
        """Counts rows under the name of a field of `Dropped`."""
        self.counts[reason] = self.counts.get(reason, 0) + n

    def repeat(self, origin: str, answer: str | None, first: tuple[str, str | None]) -> None:
        """Counts a row that repeats the prompt of another one, which is given by its origin and answer."""
        self.add("repeated")
        if answer != first[1]:
            self.add("conflicting")
            if len(self.conflicts) < SHOWN:
                self.conflicts.append(f"{origin} answers {answer!r}, {first[0]} with the same prompt {first[1]!r}")

    def record(self) -> Dropped:
        """What was counted."""
        return Dropped(conflicts=tuple(self.conflicts), **self.counts)


def _rows(n: int) -> str:
    return "1 row is" if n == 1 else f"{n} rows are"
