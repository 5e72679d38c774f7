"""Verdicts on a fit: reasons against it, measured figures, and the checks that were not possible."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from physppl.internal.errors import FATAL, Status

OK, DOUBTFUL, UNUSABLE, NOT_CHECKED = "ok", "doubtful", "unusable", "not checked"

Figures = dict[str, float | int]


@dataclass(frozen=True)
class Reason:
    """A reason against a fit: its verdict, the finding, and the remedy."""

    verdict: str
    finding: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.verdict}: {self.finding}. {self.remedy[0].upper()}{self.remedy[1:]}."


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names in one line, the first few where they are many."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def status_reasons(status) -> list[Reason]:
    """Reasons against a fit by its status; none where that is OK."""
    status = Status(int(status))
    if status is Status.OK:
        return []
    finding, _, remedy = status.remedy.partition(": ")
    fatal = status in FATAL
    return [Reason(UNUSABLE if fatal else DOUBTFUL, finding, remedy)]


class StatusAlone:
    """Base of posteriors whose status is all that is known of their fit."""

    status: Any

    def findings(self) -> tuple[list[Reason], Figures]:
        return status_reasons(self.status), {}


@dataclass(frozen=True, repr=False)
class Check:
    """One verdict; print it.

    Attributes:
        header: the fit and its method.
        reasons: the worst first; none for a fit that is ok.
        figures: {name: value} of all that was measured.
        not_checked: checks that were not possible, with the cause.
        seen: False where the fit itself could not be checked.
    """

    header: str
    reasons: tuple[Reason, ...]
    figures: Figures
    not_checked: tuple[str, ...] = ()
    seen: bool = True

    @property
    def verdict(self) -> str:
        """`ok`, `doubtful` (usable with care for the reasons), `unusable`, or `not checked` (no statement)."""
        if self.reasons:
            return self.reasons[0].verdict
        return OK if self.seen else NOT_CHECKED

    def __str__(self) -> str:
        lines = [f"{self.verdict} | {self.header}", *(f"- {reason}" for reason in self.reasons)]
        lines += [f"- not checked: {part}." for part in self.not_checked]
        if self.figures:
            measured = ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in self.figures.items())
            lines.append(f"measured: {measured}")
        return "\n".join(lines)

    __repr__ = __str__
