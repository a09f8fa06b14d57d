"""A table of a thousand rows, of which only those in view are in the page."""

import json

import pytest
from playwright.sync_api import expect

ROWS, SETS = 1000, 9
SCROLL = "#board .scroll"


@pytest.fixture
def long(visit):
    """The first page of the small site with made-up data in place of its own."""
    ranks = [(row * 7) % ROWS for row in range(ROWS)]
    texts = [f"{100 - rank / 10:.1f}" for rank in ranks]
    column = {"texts": texts, "best": [0], "ranks": ranks, "whole": ROWS, "measured": ROWS, "higher": True, "intervals": None}
    heads = [{"kind": "mean", "text": "all sets", "cells": f"{SETS} cells", "mean": True, "href": ""}]
    heads += [
        {"kind": "far-ood", "text": f"set-{n}", "cells": "", "mean": False, "href": "sets/photos.html"} for n in range(SETS)
    ]
    rows = [[f"detector-{row}", "unsupervised", "detectors/knn.html", row == 500, []] for row in range(ROWS)]
    board = {"columns": heads, "rows": rows, "protocols": ["unsupervised"], "costs": []}
    figures = {"columns": [column] * len(heads), "caption": "Made up.", "notes": []}
    with visit("small/index.html", start="server") as page:
        answer(page, "board-1", "board", 1, board)
        answer(page, "board-1-auroc", "figures", 1, "auroc", figures)
        page.goto(page.url + "#columns=all")
        page.reload()
        expect(page.locator("#status")).to_have_text("999 rows, and the control above them")
        yield page


def answer(page, file, function, *arguments):
    body = f"oodbench.{function}({','.join(map(json.dumps, arguments))});"
    page.route(f"**/data/{file}.js", lambda route: route.fulfill(body=body, content_type="text/javascript"))


def names(page):
    return page.locator("#table tbody:last-child th").all_inner_texts()


def in_order(worst=False):
    """Names of all rows but the control's, as the made-up figures order them."""
    return [f"detector-{row}" for row in sorted(range(ROWS), key=lambda row: (row * 7) % ROWS, reverse=worst) if row != 500]


def test_rows_in_view(long):
    assert names(long)[:10] == in_order()[:10]
    assert len(names(long)) < 100
    height = long.eval_on_selector(SCROLL, "view => view.scrollHeight")
    for share in (0.25, 0.5, 1):
        long.eval_on_selector(
            SCROLL, "(view, share) => { view.scrollTop = share * (view.scrollHeight - view.clientHeight); }", share
        )
        at = int(share * (ROWS - 20))
        expect(long.locator(f"#table a:text-is('{in_order()[at]}')")).to_be_in_viewport()
        assert len(names(long)) < 100
        assert long.eval_on_selector(SCROLL, "view => view.scrollHeight") == pytest.approx(height, rel=0.01)
    assert names(long)[-1] == in_order()[-1]
    assert long.locator("tbody.controls a").is_visible()


def test_a_sort_starts_at_the_top_and_stays_at_the_column(long):
    long.set_viewport_size({"width": 500, "height": 700})
    long.eval_on_selector(SCROLL, "view => view.scrollTo(300, 5000)")
    long.locator("#table thead button").nth(4).evaluate("button => button.click()")  # without scrolling to it
    expect(long.locator("#table thead th").nth(4)).to_have_attribute("aria-sort", "descending")
    long.locator("#table thead button").nth(4).evaluate("button => button.click()")  # without scrolling to it
    expect(long.locator("#table thead th").nth(4)).to_have_attribute("aria-sort", "ascending")
    assert names(long)[:10] == in_order(worst=True)[:10]
    assert long.eval_on_selector(SCROLL, "view => [view.scrollLeft > 100, view.scrollTop]") == [True, 0]
    long.fill("[name=q]", "detector-77")
    expect(long.locator("#status")).to_contain_text("11 of 999 rows")
    assert {*names(long)} == {"detector-77", *(f"detector-77{n}" for n in range(10))}


def test_paper_shows_all_rows(long):
    long.evaluate(
        "addEventListener('beforeprint', () => { window.printed = document.querySelectorAll('#table th[scope=row]').length; })"
    )
    assert long.pdf().startswith(b"%PDF")
    assert long.evaluate("window.printed") == ROWS
    assert len(names(long)) < 100
