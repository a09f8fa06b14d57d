"""Sites of other tasks than detection: what is there can be found, and charts show what tables say."""

import re

import pytest
from hostile import MARKUP
from playwright.sync_api import expect

TITLES = {
    "small": "Out-of-distribution detection",
    "quality": "Image quality",
    "tasks": "Out-of-distribution detection, image quality and active learning",
}
ENTRIES = {
    "small": ["Detection", "Detectors", "Sets", "Runs", "Downloads"],
    "quality": ["Image quality", "Runs", "Downloads"],
    "tasks": ["Detection", "Detectors", "Sets", "Image quality", "Active learning", "Runs", "Downloads"],
}


@pytest.mark.parametrize("site", TITLES)
def test_title_and_navigation_name_the_tasks(visit, site):
    with visit(f"{site}/index.html") as page:
        assert page.title() == page.locator("h1").inner_text() == TITLES[site]
        assert page.locator("nav a").all_inner_texts() == [TITLES[site], *ENTRIES[site]]
        for link in page.locator("nav a").all()[1:]:
            link.click()
            expect(page.locator(f"#{page.url.partition('#')[2]}")).to_be_in_viewport()


def texts_of(table):
    """The cells of a table, row by row."""
    return [row.locator("th, td").all_inner_texts() for row in table.locator("tbody tr").all()]


@pytest.mark.parametrize("options", [{}, {"java_script_enabled": False}])
def test_curves_end_where_the_table_says(visit, options):
    with visit("tasks/index.html", **options) as page:
        section = page.locator("#active-learning")
        assert [title.partition("tested on ")[2] for title in section.locator("h3").all_inner_texts()] == [
            "digits", "digits+noise@3",
        ]  # fmt: skip
        assert "Limited to 60 images of each test set: study/seed-0, study/seed-1." in section.inner_text()
        for table, chart in zip(section.locator("table").all(), section.locator("figure").all(), strict=True):
            caption = chart.locator("figcaption").inner_text()
            assert caption == "feed-forward features. Mean of 2 seeds; bands: ± one standard deviation."
            last = {row[0]: row[-1].partition(" ")[0] for row in texts_of(table)}
            said = chart.locator("desc").text_content()
            assert dict(re.findall(r"(margin|random) (\d+\.\d)", said)) == last
            ends = {name: chart.locator("circle", has_text=f"{name}, 64 labelled images: {end}") for name, end in last.items()}
            assert [circle.count() for circle in ends.values()] == [1, 1]
            height = {name: float(circle.get_attribute("cy")) for name, circle in ends.items()}
            assert (height["margin"] < height["random"]) == (float(last["margin"]) > float(last["random"]))
            assert chart.locator("path.band").count() == chart.locator("path.curve").count() == 2


def test_each_metric_has_its_mapping(visit):
    with visit("quality/index.html", width=400) as page:
        assert page.locator("h2").first.inner_text() == "scores:<b>table.csv, image quality"
        caption = page.locator(".caption").first.inner_text()
        assert "scores of 1,200 images" in caption
        assert "In brackets: 95 % intervals" in caption
        heads = page.locator("table").first.locator("th[scope=col]").all_inner_texts()
        assert [re.sub(r"\s+", " ", head) for head in heads] == [
            "metric", "RMSE lower is better", "PLCC higher is better", "SRCC higher is better", "KRCC higher is better",
        ]  # fmt: skip
        rows = texts_of(page.locator("table").first)
        assert [row[0] for row in rows] == ["fine", MARKUP, "=1+1"]
        assert all(re.fullmatch(r"-?[\d.]+ \[-?[\d.]+, -?[\d.]+\]", text) for row in rows for text in row[1:])
        assert page.locator("table b").count() == 4  # the first metric is significantly better than the others
        charts = page.locator("figure.middle")
        assert charts.locator("figcaption").all_inner_texts() == [
            f"{name}: SRCC {srcc.split()[0]}, PLCC {plcc.split()[0]}" for name, _, plcc, srcc, _ in rows
        ]
        label = charts.first.locator("svg").get_attribute("aria-label")
        assert label.startswith("MOS of 1,200 images by the values of fine, with the fitted logistic function: SRCC ")
        assert "1,000 of 1,200 images are drawn." in page.locator(".caption").nth(1).inner_text()
        drawn = charts.first.locator("path.dots").get_attribute("d")
        assert 700 < drawn.count("M") <= 1000  # points at one place are drawn once
        assert max(charts.nth(place).bounding_box()["width"] for place in range(3)) <= 400


@pytest.mark.parametrize("path", ["quality/index.html", "small/index.html", "small/sets/photos.html"])
def test_a_long_name_leaves_the_figures_in_view(visit, path):
    with visit(path) as page:
        row = page.locator("table").first.locator("tbody tr").first
        name, narrow = row.locator("th > *"), row.locator("td").first
        height = row.bounding_box()["height"]
        name.evaluate("name => { name.textContent = 'abcd-'.repeat(6); }")
        assert row.bounding_box()["height"] == height  # usual names stay in one line
        name.evaluate("name => { name.textContent = 'x'.repeat(300); }")
        assert narrow.bounding_box()["x"] < 500
        assert (row.bounding_box()["height"] == height) == (path == "small/index.html")  # whose lines are equally high


def test_downloads_of_a_task_stand_beside_its_tables(visit, sites):
    with visit("tasks/index.html") as page:
        for task in ("quality", "active-learning"):
            links = page.locator(f"#{task} a[download]").evaluate_all("links => links.map((link) => link.getAttribute('href'))")
            assert links == [f"downloads/{task}.{suffix}" for suffix in ("csv", "json", "md", "tex")]
    table = (sites / "tasks" / "downloads" / "quality.csv").read_text()
    assert "'=1+1" in table
    assert "\n=1+1" not in table
    assert ",=1+1" not in table
