"""Tables as text."""

import html
import math

SCREEN = 30  # lines of a table that is printed


def first(lines: list[str], whole: str) -> list[str]:
    """The lines that fit a screen; where there are more, a last one with their number and where the whole is."""
    if len(lines) <= SCREEN:
        return lines
    return [*lines[: SCREEN - 1], f"... and {len(lines) - SCREEN + 1} more; all of them: {whole}"]


def aligned(lines: list[list[str]], left: set[int]) -> list[str]:
    """Lines of cells as text in columns: those of `left` aligned to the left, the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    cells = [
        [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    return ["  ".join(line).rstrip() for line in cells]


def as_html(lines: list[list[str]], left: set[int]) -> str:
    """Lines of cells as an HTML table, the first one as its head, aligned as in `aligned`."""

    def row(cells, tag):
        return "".join(
            f'<{tag} style="text-align:{"left" if i in left else "right"}">{html.escape(c)}</{tag}>'
            for i, c in enumerate(cells)
        )

    head, *body = lines
    rows = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in body)
    return f"<table><tr>{row(head, 'th')}</tr>{rows}</table>"


def number(value: float, sd: float) -> str:
    """A number as text, to two digits of its sd."""
    if not (math.isfinite(value) and math.isfinite(sd) and sd > 0):
        return f"{value:.4g}"
    decimals = 1 - math.floor(math.log10(sd))
    if decimals > 5 or abs(value) >= 1e5:
        digits = max(math.floor(math.log10(max(abs(value), sd))) + decimals, 1)
        return f"{value:.{digits}e}"
    return f"{value:.{max(decimals, 0)}f}"
