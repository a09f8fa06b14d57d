"""Every kind of page: from disk and from a server, with and without scripts, in light and dark, small and on paper."""

import json
import re
from urllib.parse import unquote

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from hostile import MARKUP, TEXT
from playwright.sync_api import expect

from oodbench.leaderboard import escape

KINDS = {
    "index": "small/index.html",
    "detector": "small/detectors/knn.html",
    "set": "small/sets/digits-noise.html",
    "run": "small/runs/run.html",
    "tasks": "tasks/index.html",
    "run of a task": "tasks/runs/study-seed-0.html",
}
ATTACKED = {
    "index": "attacked/index.html",
    "detector": "attacked/detectors/img-src-x-onerror-alert-1.html",
    "set": "attacked/sets/photos.html",
    "run": "attacked/runs/b-run-resnet8-digits-seed-0.html",
    "tasks": "quality/index.html",
    "run of a task": "quality/runs/i-scores.html",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_the_same_from_disk_and_from_a_server(visit, kind):
    texts = []
    for start in ("disk", "server"):
        with visit(KINDS[kind], start) as page:
            texts.append(page.inner_text("body"))
    assert texts[0] == texts[1]
    assert len(texts[0]) > 300


def test_every_link_leads_somewhere(visit, sites):
    folders = (sites / name for name in ("small", "attacked", "tasks", "quality"))
    pages = {path.relative_to(sites) for folder in folders for path in folder.rglob("*.html")}
    assert len(pages) > 20
    linked = set()
    with visit("small/index.html") as page:
        for path in pages:
            page.goto((sites / path).as_uri())
            for address in page.locator("a").evaluate_all("links => links.map((link) => link.href)"):
                file, _, part = address.removeprefix("file://").partition("#")
                found = sites.joinpath(unquote(file))
                assert sites in found.parents
                assert found.is_file()
                if part and found.name == "index.html":
                    assert f'id="{part}"' in found.read_text()
                linked.add(found.relative_to(sites))
    assert pages <= linked


def test_a_link_to_a_part_of_the_first_page(visit):
    for start in ("disk", "server"):
        with visit("small/index.html#downloads", start) as page:
            expect(page.locator("#downloads")).to_be_in_viewport()
            assert page.evaluate("location.hash") == "#downloads"
            page.click("nav >> text=Sets")
            expect(page.locator("#sets")).to_be_in_viewport()
            page.select_option("[name=metric]", "fpr95")
            expect(page).to_have_url(re.compile("#metric=fpr95$"))


@pytest.mark.parametrize("kind", ATTACKED)
def test_hostile_names_are_text(visit, kind):
    name = escape.plain(f"{MARKUP}:{TEXT}")
    with visit(ATTACKED[kind]) as page:
        text = page.inner_text("body")
        assert MARKUP in text
        assert not set(text) & set("\u202e\x1b")
        assert page.locator("img").count() == 0
        scripts = page.locator("script").evaluate_all(
            "scripts => scripts.map((script) => script.getAttribute('src') ?? 'inline')"
        )
        assert scripts == (["site.js", "data/board-1.js", "data/board-1-auroc.js"] if kind == "index" else [])
        if kind == "index":
            assert name in page.inner_text("#table")
            assert escape.plain(TEXT.partition("\u202e")[0]) in page.inner_text("#notes")
            page.fill("[name=q]", MARKUP)
            expect(page.locator("#status")).to_contain_text("4 of 6 rows")
        if kind == "set":
            assert "failed: ValueError: </script>" in text
        if kind == "run":
            assert "fails\tfailed\t2\tValueError: </script>" in page.locator("table").first.inner_text()
            assert "skipped" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_serious_barrier(visit, kind, scheme):
    for path in (KINDS[kind], ATTACKED[kind]):
        with visit(path, color_scheme=scheme, bypass_csp=True) as page:  # for axe's own script
            page.evaluate(AXE_SCRIPT)
            found = page.evaluate("() => axe.run(document, {resultTypes: ['violations'], preload: false})")
            assert found["passes"], "axe has looked at nothing"
            barriers = {one["id"]: [node["target"] for node in one["nodes"]] for one in found["violations"]}
            assert barriers == {}


@pytest.mark.parametrize("kind", KINDS)
def test_dark_and_light(visit, kind):
    with visit(KINDS[kind]) as page:
        for scheme, bright in (("light", True), ("dark", False)):
            page.emulate_media(color_scheme=scheme)
            color = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (min(map(int, re.findall(r"\d+", color))) > 200) == bright


@pytest.mark.parametrize("kind", KINDS)
def test_no_page_is_wider_than_the_window(visit, kind):
    for path in (KINDS[kind], ATTACKED[kind]):
        with visit(path) as page:
            for width in (1280, 390, 320):
                page.set_viewport_size({"width": width, "height": 800})
                assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_control_stays_in_view(visit):
    with visit("small/index.html#columns=all", width=390) as page:
        view, control = page.locator("#board .scroll"), page.locator("tbody.controls th")
        view.evaluate("view => { view.style.maxHeight = '11rem'; view.scrollTo(200, view.scrollHeight); }")
        inside, outside = control.bounding_box(), view.bounding_box()
        assert view.evaluate("view => view.scrollTop > 20 && view.scrollLeft > 100")
        head = page.locator("#table thead th").first.bounding_box()
        assert inside["y"] == pytest.approx(head["y"] + head["height"], abs=1)
        assert inside["y"] + inside["height"] <= outside["y"] + outside["height"]
        assert inside["x"] == pytest.approx(outside["x"] + 1, abs=1)


def test_without_scripts(visit, sites):
    with visit("small/index.html", java_script_enabled=False) as page:
        assert page.locator("#board").is_hidden()
        assert page.locator(".static h3").all_inner_texts() == ["unsupervised", "per-shift", "transfer"]
        text = page.locator(".static").inner_text()
        rows = json.loads((sites / "small.json").read_text())
        assert {row["detector"] for row in rows} <= set(re.findall(r"[\w-]+", text))
        means = page.locator(".static h3:text-is('transfer') + .scroll table")
        assert means.locator("thead th").all_inner_texts()[1] == "all sets\n\n6 cells"
        assert all(re.fullmatch(r"[\d.]+", cell) for cell in means.locator("tbody td:nth-child(2)").all_inner_texts())
        page.click("#sets a >> text=photos")
        assert page.locator("h1").inner_text() == "photos"
        assert page.locator("table").count() == 3


def test_on_paper(visit):
    with visit("small/index.html") as page:
        page.emulate_media(media="print")
        assert page.locator("#controls").is_hidden()
        assert page.locator("nav").is_hidden()
        assert page.locator("#board .scroll").evaluate("view => getComputedStyle(view).overflow") == "visible"
        page.emulate_media(media="screen")
        assert page.pdf().startswith(b"%PDF")
