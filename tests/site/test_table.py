"""The interactive table: its figures, orders and choices, and the address that keeps them."""

import itertools
import json
import re

import pandas as pd
import pytest
from playwright.sync_api import expect

from oodbench.leaderboard.aggregate import COLUMNS, METRICS, tally

PROTOCOLS = ("unsupervised", "per-shift", "transfer")
ALL = "small/index.html#columns=all"


def heads(page):
    """The name of each column, without the mark of the order."""
    return page.locator("#table thead .name").all_inner_texts()


def names(page, part="tbody:last-child"):
    return page.locator(f"#table {part} tr:not([aria-hidden]) th").all_inner_texts()


def column(page, name, part="tbody:last-child"):
    """Texts of a column, from top to bottom."""
    place = heads(page).index(name)
    return page.locator(f"#table {part} tr:not([aria-hidden]) > :nth-child({place + 1})").all_inner_texts()


def named(page, name):
    return page.locator(f".name:text-is('{name}')")


def sort_by(page, name):
    page.locator("#table thead button", has=named(page, name)).click()
    expect(page.locator("#table th", has=named(page, name))).not_to_have_attribute("aria-sort", "none")


def order_of(page, name):
    return page.locator("#table th", has=named(page, name)).get_attribute("aria-sort")


def number(text):
    return float(re.match(r"~?([\d.]+)", text)[1])


def state(page):
    return page.evaluate("location.hash")


@pytest.fixture(scope="module")
def frame(sites):
    return pd.DataFrame(json.loads((sites / "small.json").read_text())).reindex(columns=list(COLUMNS))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_figures_are_those_of_the_leaderboard(visit, frame, protocol):
    with visit(f"{ALL}&protocol={protocol}") as page:
        for metric, (title, _) in METRICS.items():
            page.select_option("[name=metric]", metric)
            expect(page.locator("#caption")).to_contain_text(f"{title} ×100")
            compare(page, tally(frame, metric).values, protocol)


def compare(page, values, protocol):
    shown = [*names(page, "tbody.controls"), *names(page)]
    expected = {
        f"{key[-2]} (control)" if key[-2] == "pixels" else key[-2]: row for key, row in values.iterrows() if key[4] == protocol
    }
    assert sorted(shown) == sorted(expected)
    for key in values.columns:
        name = "all sets" if key[:2] == ("mean", "all") else key[1]
        figures = [expected[detector][key] for detector in shown]
        if all(map(pd.isna, figures)):
            assert name not in heads(page)
        else:
            texts = ["" if pd.isna(figure) else f"{100 * figure:.1f}" for figure in figures]
            assert [*column(page, name, "tbody.controls"), *column(page, name)] == texts


def test_orders(visit, frame):
    with visit(ALL) as page:
        for name in heads(page)[1:]:
            best_first = "ascending" if name in ("digits+grey-level", "benign", "ms/image", "overhead") else "descending"
            worst_first = {"ascending": "descending", "descending": "ascending"}[best_first]
            if name != "all sets":  # the order at first
                sort_by(page, name)
            assert order_of(page, name) == best_first
            first = [number(text) for text in column(page, name) if text]
            assert first == sorted(first, reverse=best_first == "descending")
            sort_by(page, name)
            assert order_of(page, name) == worst_first
            again = [number(text) for text in column(page, name) if text]
            assert again == sorted(first, reverse=worst_first == "descending")
            assert page.locator("#table thead th:not([aria-sort=none])").count() == 1
            assert names(page, "tbody.controls") == ["pixels (control)"]
        sort_by(page, "detector")
        assert (order_of(page, "detector"), names(page)) == ("ascending", sorted(names(page)))
        sort_by(page, "detector")
        assert (order_of(page, "detector"), names(page)) == ("descending", sorted(names(page), reverse=True))


def test_the_order_is_of_the_metric_that_is_shown(visit):
    with visit("small/index.html") as page:
        for metric in METRICS:
            page.select_option("[name=metric]", metric)
            expected = "descending" if METRICS[metric][1] else "ascending"
            expect(page.locator("#caption")).to_contain_text(f"{METRICS[metric][0]} ×100")
            assert order_of(page, "all sets") == expected
            figures = [number(text) for text in column(page, "all sets")]
            assert figures == sorted(figures, reverse=METRICS[metric][1])


@pytest.mark.parametrize("worst", ["", "&worst=1"])
def test_rows_that_lack_cells_come_after_whole_ones_and_those_without_figures_last(visit, worst):
    with visit(f"attacked/index.html#sort=mean+all+sets{worst}") as page:
        texts = column(page, "all sets")
        kinds = ["last" if text in ("", "–") else "partial" if "(" in text else "whole" for text in texts]
        assert [kind for kind, _ in itertools.groupby(kinds)] == ["whole", "partial", "last"]
        partial = [number(text) for text in texts if "(" in text]
        assert len(partial) == 4
        assert partial == sorted(partial, reverse=not worst)


@pytest.mark.parametrize("worst", ["", "&worst=1"])
def test_detectors_that_a_protocol_does_not_have_come_last(visit, worst):
    with visit(f"small/index.html#protocol=*&columns=set+photos&sort=set+photos+per-shift{worst}") as page:
        place = page.locator("#table thead .cells").all_inner_texts().index("per-shift")
        texts = page.locator(f"#table tbody:last-child tr > :nth-child({place + 2})").all_inner_texts()
        assert [bool(text) for text in texts] == [True] * 3 + [False] * 3
        figures = [number(text) for text in texts if text]
        assert figures == sorted(figures, reverse=not worst)


def test_the_keyboard_sorts(visit):
    with visit("small/index.html") as page:
        page.locator("#table thead button").nth(3).focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#table th:nth-child(4)[aria-sort=descending]")
        assert page.evaluate("document.activeElement.textContent") == page.locator("#table thead button").nth(3).text_content()
        page.keyboard.press("Space")
        page.wait_for_selector("#table th:nth-child(4)[aria-sort=ascending]")
        seen = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            seen.add(page.evaluate("document.activeElement.closest('#table thead button, tbody a')?.textContent"))
        assert {"msp", "knn", *(page.locator("#table thead button").all_text_contents()[4:])} <= seen


def test_three_protocols_side_by_side(visit):
    figures = {}
    for protocol in PROTOCOLS:
        with visit(f"small/index.html#columns=set+photos&protocol={protocol}") as page:
            texts = column(page, "photos")
            figures[protocol] = dict(zip(names(page), texts, strict=True))
    with visit("small/index.html") as page:
        page.select_option("[name=protocol]", label="side by side")
        page.select_option("[name=columns]", "set photos")
        expect(page.locator("#table thead th")).to_have_count(6)
        assert page.locator("#table thead .cells").all_inner_texts() == list(PROTOCOLS)
        assert len(names(page)) == len(set(names(page))) == len(figures["unsupervised"])
        for place, protocol in enumerate(PROTOCOLS):
            texts = page.locator(f"#table tbody:last-child tr > :nth-child({place + 2})").all_inner_texts()
            assert texts == [figures[protocol].get(name, "") for name in names(page)]


def test_bold_is_that_of_the_table_without_scripts(visit):
    for protocol in PROTOCOLS:
        with visit(f"small/index.html#protocol={protocol}") as page:
            bold = "table => [...table.rows].map((row) => [...row.querySelectorAll('b')].map((one) => one.textContent))"
            interactive = page.locator("#table").evaluate(bold)
            static = page.locator(f".static h3:text-is('{protocol}') + .scroll table").evaluate(bold)
            assert sum(map(len, interactive)) > 3
            assert sorted(interactive) == sorted(static)


def test_columns_and_search(visit):
    with visit("small/index.html") as page:
        kinds = page.locator("[name=columns] optgroup[label=Kind] option").all_inner_texts()
        assert kinds == ["near-ood", "far-ood", "corruption", "benign"]
        page.select_option("[name=columns]", "kind far-ood")
        expect(page.locator("#table thead th")).to_have_count(5)
        assert heads(page) == ["detector", "photos", "uniform", "ms/image", "overhead"]
        page.select_option("[name=columns]", "set digits+noise")
        expect(page.locator("#table thead th")).to_have_count(4)
        assert heads(page) == ["detector", "digits+noise", "ms/image", "overhead"]
        assert page.locator("#table thead a").evaluate_all("links => links.map((link) => link.pathname.split('/').pop())") == [
            "digits-noise.html"
        ]
        page.fill("[name=q]", "  NN ")
        expect(page.locator("#status")).to_contain_text("1 of 6 rows")
        assert names(page) == ["knn"]
        assert names(page, "tbody.controls") == ["pixels (control)"]
        page.fill("[name=q]", "nothing")
        expect(page.locator("#status")).to_contain_text("0 of 6 rows")
        assert names(page) == []


def test_intervals_on_demand(visit, frame):
    ends = frame[frame["protocol"] == "unsupervised"].set_index(["dataset", "detector"])
    with visit("small/index.html") as page:
        assert page.locator("#table small").count() == 0
        page.check("[name=interval]")
        expect(page.locator("#status")).to_contain_text("Only single sets have intervals")
        page.select_option("[name=columns]", "set photos")
        page.wait_for_selector("#table small")
        for detector, text in zip(names(page), column(page, "photos"), strict=True):
            cell = ends.loc[("photos", detector)]
            low, high = cell["auroc_low"], cell["auroc_high"]
            assert text.split(None, 1)[1] == f"[{100 * low:.1f}, {100 * high:.1f}]"
        page.select_option("[name=metric]", "fpr95")  # published without its intervals
        page.wait_for_selector("[name=interval]:disabled")
        assert page.locator("#table small").count() == 0


def test_the_address_keeps_the_state(visit):
    with visit("small/index.html") as page:
        assert state(page) == ""
        page.select_option("[name=protocol]", "per-shift")
        page.select_option("[name=metric]", "fpr95")
        page.select_option("[name=columns]", "all")
        page.fill("[name=q]", "n")
        expect(page).to_have_url(re.compile("q=n"))
        sort_by(page, "photos")
        sort_by(page, "photos")
        expect(page).to_have_url(re.compile("worst"))
        kept, shown = state(page), page.locator("#table").inner_text()
        page.reload()
        page.wait_for_selector("#status:not(:empty)")
        assert (state(page), page.locator("#table").inner_text()) == (kept, shown)
    with visit(f"small/index.html{kept}") as page:
        assert (state(page), page.locator("#table").inner_text()) == (kept, shown)
        assert [page.input_value(f"[name={name}]") for name in ("protocol", "metric", "columns", "q")] == [
            *("per-shift", "fpr95", "all", "n")
        ]
        page.select_option("[name=protocol]", "unsupervised")
        page.select_option("[name=metric]", "auroc")
        page.select_option("[name=columns]", "means")
        page.fill("[name=q]", "")
        expect(page).not_to_have_url(re.compile("q="))
        sort_by(page, "all sets")
        expect(page).not_to_have_url(re.compile("#"))
        page.evaluate("location.hash = 'sort=detector'")
        page.wait_for_selector("#table th:first-child[aria-sort=ascending]")


@pytest.mark.parametrize(
    "state",
    ["board=9", "metric=x&protocol=y&columns=z&sort=w", "board=%22%5D&metric=__proto__&columns=", "constructor=1&toString"],
)
def test_an_unknown_state_is_the_first_one(visit, state):
    with visit("small/index.html") as page:
        expected = page.locator("#table").inner_text()
    with visit(f"small/index.html#{state}") as page:
        assert page.locator("#table").inner_text() == expected
        assert page.evaluate("location.hash") == ""


def test_another_board(visit):
    with visit("attacked/index.html#board=2") as page:
        assert page.locator("[name=board] option:checked").inner_text().startswith("resnet8-digits")
        assert "±" in column(page, "all sets")[0]
        other = page.locator("#table").inner_text()
        page.select_option("[name=board]", "1")
        expect(page).not_to_have_url(re.compile("#"))
        assert page.locator("#table").inner_text() != other


def test_a_quick_change_of_mind(visit):
    """The answer to what was asked for last is shown, though that to an earlier question comes later."""
    with visit("small/index.html", start="server") as page:
        held = []
        page.route("**/board-1-fpr95.js", lambda route: held.append(route))
        page.select_option("[name=metric]", "fpr95")
        page.select_option("[name=metric]", "aupr_in")
        expect(page.locator("#caption")).to_contain_text("AUPR of the in")
        held[0].continue_()
        page.wait_for_timeout(200)
        assert page.text_content("#caption").startswith("AUPR of the in")
        assert "metric=aupr_in" in state(page)


def test_a_file_that_is_missing(visit):
    with visit("small/index.html", start="server", allowed=["fpr95", "ERR_FAILED"]) as page:
        page.route("**/board-1-fpr95.js", lambda route: route.abort())
        page.select_option("[name=metric]", "fpr95")
        expect(page.locator("#status")).to_contain_text("Cannot load")
        assert page.locator(".static table").first.is_visible()
        assert page.locator("#table").is_hidden()
        page.unroute("**/board-1-fpr95.js")
        page.select_option("[name=metric]", "auroc")
        page.wait_for_selector("#table", state="visible")
        page.select_option("[name=metric]", "fpr95")
        expect(page.locator("#caption")).to_contain_text("FPR95")
        assert page.locator(".static table").first.is_hidden()
