"""Tables for a notebook: HTML without scripts or styles that leave the table, in which names are text."""

from html import escape as html_escape

from oodbench.leaderboard import escape
from oodbench.leaderboard.sentences import sentence
from oodbench.leaderboard.text_table import TextTable, alignment


def write_html(table: TextTable) -> str:
    """A heading, the caption, one table that scrolls sideways, and a list of notes; means and cost come first."""
    columns = [*table.labels, *table.summary, *table.sets]
    sides = [f' style="text-align:{side}"' for side in alignment(columns)]
    heads = ("<br>".join(_text(part) for part in (column.group, *column.lines) if part) for column in columns)
    head = "".join(f"<th{side}>{text}</th>" for side, text in zip(sides, heads, strict=True))
    rows = []
    for place, texts in enumerate(zip(*(column.texts for column in columns), strict=True)):
        bold = (f"<b>{_text(text)}</b>" if place in c.best else _text(text) for text, c in zip(texts, columns, strict=True))
        rows.append("<tr>" + "".join(f"<td{side}>{text}</td>" for side, text in zip(sides, bold, strict=True)) + "</tr>\n")
    notes = "".join(f"<li>{_text(sentence(note))}</li>\n" for note in table.notes)
    body = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody></table>"
    return f'<h4>{_text(table.title)}</h4>\n<p>{_text(table.caption)}</p>\n<div style="overflow-x:auto">{body}</div>\n' + (
        f"<ul>\n{notes}</ul>\n" if notes else ""
    )


def _text(text: str) -> str:
    return html_escape(escape.plain(text))
