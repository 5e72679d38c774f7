"""Verdicts on a fit: the reasons that speak against it, what was measured, and what could not be checked."""

from dataclasses import dataclass

from physppl.internal.errors import Status

OK, DOUBTFUL, UNUSABLE, NOT_CHECKED = "ok", "doubtful", "unusable", "not checked"

Figures = dict[str, float | int]


@dataclass(frozen=True)
class Reason:
    """Why a verdict is not `ok`: how bad it is, the finding, and the remedy."""

    verdict: str
    finding: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.verdict}: {self.finding}. {self.remedy[0].upper()}{self.remedy[1:]}."


def status_reasons(status) -> list[Reason]:
    """What the status of a fit says against it; nothing where it is OK."""
    status = Status(int(status))
    if status is Status.OK:
        return []
    finding, _, remedy = status.remedy.partition(": ")
    fatal = status in (Status.NONFINITE, Status.NOT_POSITIVE_DEFINITE)
    return [Reason(UNUSABLE if fatal else DOUBTFUL, finding, remedy)]


@dataclass(frozen=True)
class Check:
    """One verdict; print it.

    Attributes:
        header: the fit and its method.
        reasons: the worst first; none for a fit that is ok.
        figures: {name: value} of what was measured, whatever came out.
        not_checked: what could not be checked, and why.
        seen: False where nothing could be said about the fit itself.
    """

    header: str
    reasons: tuple[Reason, ...]
    figures: Figures
    not_checked: tuple[str, ...] = ()
    seen: bool = True

    @property
    def verdict(self) -> str:
        """`ok`, `doubtful` (usable with care for the reasons), `unusable`, or `not checked` (nothing is known)."""
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
