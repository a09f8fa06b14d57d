"""Tables for GitHub's Markdown."""

from tabulate import tabulate

from oodbench.leaderboard import escape
from oodbench.leaderboard.sentences import sentence
from oodbench.leaderboard.text_table import TextTable, alignment, side_by_side


def write_markdown(table: TextTable) -> str:
    """A heading, the caption, tables of as many columns as fit a page, and a list of notes."""
    bodies = []
    for block in side_by_side(table):
        columns = [*table.labels, *block]
        heads, texts = [], []
        for column in columns:
            heads.append(" ".join(escape.markdown(part) for part in (column.group, *column.lines) if part))
            escaped = [escape.markdown(text) for text in column.texts]
            texts.append([f"**{text}**" if place in column.best else text for place, text in enumerate(escaped)])
        rows = list(zip(*texts, strict=True))
        bodies.append(tabulate(rows, heads, tablefmt="pipe", disable_numparse=True, colalign=alignment(columns)) + "\n")
    notes = "".join(f"- {escape.markdown(sentence(note))}\n" for note in table.notes)
    caption = escape.markdown(table.caption)
    return "\n".join([f"### {escape.markdown(table.title)}\n", f"{caption}\n", *bodies, *([notes] if notes else [])])
