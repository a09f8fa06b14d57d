"""Tables for LaTeX, with the packages booktabs and graphicx."""

from typing import Any

from tabulate import SEPARATING_LINE, tabulate

from oodbench.leaderboard import escape
from oodbench.leaderboard.notes import Gap, Missing
from oodbench.leaderboard.sentences import sentence
from oodbench.leaderboard.text_table import Column, TextTable, alignment, side_by_side


def write_latex(table: TextTable) -> str:
    """One float for as many columns as fit a page; the notes stand in the last."""
    blocks = side_by_side(table)
    marked = [("– " if isinstance(note, Missing | Gap) else "") + sentence(note) for note in table.notes]
    notes = "".join(rf"\par\footnotesize {escape.latex(note)}" + "\n" for note in marked)
    floats = []
    for place, block in enumerate(blocks):
        caption = f"{table.title}. {table.caption}" if place == 0 else f"{table.title}, continued."
        floats += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape.latex(caption)}}}",
            r"\resizebox{\linewidth}{!}{%",
            _tabular([*table.labels, *block], table.breaks) + "}",
            (notes if place == len(blocks) - 1 else "") + r"\end{table}",
            "",
        ]
    return "\n".join(["% needs booktabs and graphicx", *floats])


def _tabular(columns: list[Column], breaks: list[int]) -> str:
    heads, texts = [], []
    for column in columns:
        lines = [escape.latex(part) for part in (column.group, *column.lines) if part]
        stacked = r"\\".join(lines)
        heads.append(lines[0] if len(lines) == 1 else rf"\shortstack[r]{{{stacked}}}")
        escaped = [escape.latex(text) for text in column.texts]
        texts.append([rf"\textbf{{{text}}}" if place in column.best else text for place, text in enumerate(escaped)])
    rows: list[Any] = list(zip(*texts, strict=True))
    for place in reversed(breaks):
        rows.insert(place, SEPARATING_LINE)
    lines = tabulate(rows, heads, tablefmt="latex_raw", disable_numparse=True, colalign=alignment(columns)).splitlines()
    rules = [place for place, line in enumerate(lines) if line == r"\hline"]
    for place in rules:
        lines[place] = r"\toprule" if place == rules[0] else r"\bottomrule" if place == rules[-1] else r"\midrule"
    return "\n".join(lines)
