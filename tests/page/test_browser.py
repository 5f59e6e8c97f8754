"""The page in a browser: Debian's Chromium, driven by Playwright."""

import csv
import io
import json
import shutil

import pytest
from builders import COLUMNS, ROWS, SQUARE, write_contour, write_dicom
from click.testing import CliRunner
from dataset_builder import write_dataset

import loader
from etl.cli import cli
from etl.findings import FindingRow
from etl.report.compare import compare
from etl.report.page import Subject, write_page, write_pages
from etl.report.summary import summarise

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: make test-page"
)
expect = playwright.expect
expect.set_options(timeout=300_000)  # however busy the machine is
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no browser: install Debian's package chromium", allow_module_level=True)

HOSTILE = [
    "\"'&quot;`${1}",
    "</script><script>document.title='run'</script>",
    "<img src=x onerror=document.title='run'>",
    "=A,B\nC",
    "P7",
    "x" * 300,
    "\u202eright to left",
]
PHONE, DESK, PAPER = 390, 1280, 794  # pixels wide; the last is A4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "out.h5"
    manifest = {"patient_id": [name.encode() for name in HOSTILE], "series": [b""] * 7}
    manifest |= {"frame_number": [1] * 7}
    sizes = {"n": 7, "rows": 24, "columns": 30, "n_findings": 0}
    write_dataset(path, **sizes, split=[0, 0, 0, 0, 1, 2, 2], manifest=manifest)
    return loader.open_dataset(path)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=300_000
        )
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    """Return a function that opens a page; no page may say or ask for anything."""
    said, contexts = [], []

    def note(request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            said.append(request.url)

    def open_page(path, width=DESK, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
        )
        context.set_default_timeout(300_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", note)
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def findings_of(dataset):
    names = dataset.manifest["patient_id"].tolist()
    return [
        FindingRow("warning", "area-jump", "a.txt", 1, "is off", 1, patient_id=names[1]),
        FindingRow("warning", "near-duplicate", "b", 3, "is alike", 0, 4, patient_id=names[3]),
        FindingRow("info", "contour-missing", "c.dcm", 2, "none", 0, patient_id=names[2]),
    ]


@pytest.fixture
def report(dataset, tmp_path, opened):
    """Return a function that writes the page and opens it."""

    def write_and_open(width=DESK, scheme="light", **options):
        path = tmp_path / "page.html"
        found = findings_of(dataset)
        subject = Subject(dataset, summarise(dataset, found), found, **options)
        write_page(subject, path, n_pictures=100, force=True)
        return opened(path, width, scheme)

    return write_and_open


def tiles(page):
    return page.locator(".tile").count()


def decisions(page):
    return list(csv.DictReader(io.StringIO(page.evaluate("dicomEtl.rowList()"))))


def row_list(*lines):
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["patient_id", "series", "slice", "frame_number", "decision", "comment"])
    table.writerows(lines)
    return {"name": "list.csv", "mimeType": "text/csv", "buffer": text.getvalue().encode()}


def test_hostile_ids_show_as_text(report, dataset):
    page = report()
    assert page.title() == "dicom-etl report: out.h5"
    shown = [one.text_content() for one in page.locator(".tile button").all()]
    sides = ("train", "validation", "test")
    expected = [
        f"{name}, slice {number} ({sides[split]})"
        for name, number, split in zip(
            dataset.manifest["patient_id"].tolist(),
            dataset.manifest["slice"].tolist(),
            dataset.manifest["split"].tolist(),
            strict=True,
        )
    ]
    assert shown == expected


@pytest.mark.parametrize(
    ("name", "value", "n_expected"),
    [
        ("patient", "P7", 1),
        ("split", "train", 4),
        ("finding", "area-jump", 1),
        ("finding", "any", 3),
        ("structure", "i-contour", 7),
        ("review", "not yet", 7),
    ],
)
def test_filters_filter(report, name, value, n_expected):
    page = report()
    page.select_option(f"#f-{name}", value)
    assert tiles(page) == n_expected
    assert page.locator("#count").text_content().startswith(f"{n_expected} of 7 rows")


def test_keys_show_and_hide_the_layers(report):
    page = report()
    page.locator(".tile").nth(0).focus()
    layer = page.locator(".tile").nth(1).locator("svg")

    def shown(part):
        return layer.locator(f".{part}").first.evaluate("e => getComputedStyle(e).display")

    for key, part in (("k", "contour"), ("m", "edge")):
        assert shown(part) == "inline"
        page.keyboard.press(key)
        assert shown(part) == "none"
        page.keyboard.press(key)
        assert shown(part) == "inline"
    for opacity in ("0", "1"):
        page.keyboard.press("o")
        expect(layer).to_have_css("opacity", opacity)


def test_pointing_at_a_picture_fades_what_is_drawn(report):
    page = report()
    picture = page.locator(".tile .picture").nth(0)
    picture.scroll_into_view_if_needed()
    picture.hover()
    expect(picture.locator("svg")).to_have_css("opacity", "0")


def test_arrows_go_from_row_to_row_and_enter_opens_one(report, dataset):
    page = report()
    page.locator(".tile").nth(0).focus()
    page.keyboard.press("ArrowRight")
    here = page.locator(".tile.here")
    assert here.get_attribute("data-row") == "1"
    page.keyboard.press("Enter")
    names = dataset.manifest["patient_id"].tolist()
    assert page.locator("#detail-title").text_content().startswith(names[1])
    assert "is off" in page.locator("#detail").text_content()
    page.keyboard.press("ArrowRight")
    assert page.locator("#detail-title").text_content().startswith(names[2])
    page.keyboard.press("+")
    assert page.locator(".view .picture").evaluate("e => e.style.width") == "150%"
    page.keyboard.press("]")
    brightness = page.locator(".view img").evaluate("e => e.style.filter")
    assert brightness.startswith("brightness(1.1)")
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()
    assert page.evaluate("document.activeElement.dataset.row") == "2"


def test_a_dot_opens_its_row(report, dataset):
    page = report()
    page.locator("#plots").scroll_into_view_if_needed()
    dot = page.locator("#plots circle[data-row='4']").first
    dot.wait_for()
    dot.dispatch_event("click")
    name = dataset.manifest["patient_id"].tolist()[4]
    assert page.locator("#detail-title").text_content().startswith(name)


def test_decisions_are_kept_exported_and_imported_again(report, tmp_path):
    page = report()
    page.locator(".tile").nth(0).focus()
    for key in ("a", "ArrowRight", "e", "ArrowRight", "r"):
        page.keyboard.press(key)
    page.keyboard.press("c")
    page.keyboard.type('too "small", e')
    page.keyboard.press("Enter")
    page.locator(".tile").nth(3).focus()
    page.keyboard.press("e")
    page.reload()
    assert page.locator("#decided").text_content() == "4 rows decided."
    with page.expect_download() as download:
        page.click("#export")
    path = tmp_path / "decisions.csv"
    download.value.save_as(path)
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    assert [row["decision"] for row in rows] == ["accept", "exclude", "redraw", "exclude"]
    assert rows[2]["comment"] == 'too "small", e'
    assert rows[3]["patient_id"] == "'=A,B\nC"  # no spreadsheet runs it
    page.evaluate("localStorage.clear()")
    page.reload()
    assert decisions(page) == []
    page.set_input_files("#import", path)
    expect(page.locator(".decision:not(:empty)")).to_have_count(4)
    assert decisions(page) == rows
    assert page.locator(".tile").nth(2).locator(".decision").text_content() == (
        'redraw: too "small", e'
    )


def test_lines_about_rows_that_the_page_does_not_list_are_exported_again(report):
    page = report()
    page.set_input_files("#import", row_list(["P7", "", 4, "", "exclude", ""], ["P9", "", 1, 1]))
    expect(page.locator("#count")).to_contain_text("taken")
    assert [row["patient_id"] for row in decisions(page)] == ["P7"]  # the other has no decision
    page.set_input_files("#import", row_list(["P9", "", 1, 1, "accept", "b"]))
    expect(page.locator("#count")).to_contain_text("again")
    assert [row["patient_id"] for row in decisions(page)] == ["P7", "P9"]


def test_decisions_made_on_pseudonyms_come_home(report):
    page = report(pseudonyms=True)
    page.locator(".tile").nth(4).focus()
    page.keyboard.press("e")
    (line,) = decisions(page)
    assert line["patient_id"] == "pseudonym:P005"
    whole = report()
    slice_ = line["slice"]
    listed = row_list([line["patient_id"], "", slice_, 1, line["decision"], ""])
    whole.set_input_files("#import", listed)
    expect(whole.locator("#count")).to_contain_text("taken")
    assert [row["patient_id"] for row in decisions(whole)] == [HOSTILE[4]]


def test_two_reviewers_are_compared(report, dataset):
    page = report()
    slices = dataset.manifest["slice"].tolist()

    def listed(words):
        pairs = zip(HOSTILE, slices, words, strict=False)
        return row_list(*([name, "", number, 1, word, ""] for name, number, word in pairs))

    accept, exclude, redraw = "accept", "exclude", "redraw"
    mine = listed([accept, accept, exclude, exclude, redraw, redraw, accept])
    yours = listed([accept, exclude, exclude, exclude, redraw, accept])
    page.set_input_files("#compare", [mine, yours])
    page.wait_for_selector("#reviewers table")
    text = page.locator("#reviewers").text_content()
    # 4 of 6 agree; by chance (2 x 2 + 2 x 3 + 2 x 1) / 36 = 1/3 would: (2/3 - 1/3) / (1 - 1/3).
    assert "Both decided 6 rows and agree on 4, 67 %. Cohen's kappa: 0.50." in text
    differing = page.locator("#reviewers table").nth(1).locator("tbody tr")
    assert differing.count() == 2
    assert "exclude" in differing.nth(0).text_content()


def test_near_duplicates_across_splits_are_side_by_side(report):
    page = report()
    pair = page.locator(".pair")
    assert "across splits: train and validation" in pair.text_content()
    assert pair.locator("figure").count() == 2


def test_a_comparison_shows_old_and_new_edges(report, dataset, tmp_path):
    old = tmp_path / "old.h5"
    manifest = {name: dataset.manifest.stored[name] for name in ("patient_id", "series")}
    manifest |= {"frame_number": [1] * 7, "row_xxh3": dataset.manifest["row_xxh3"] + 1}
    sizes = {"n": 7, "rows": 24, "columns": 30, "n_findings": 0}
    write_dataset(old, **sizes, seed=3, manifest=manifest)
    older = loader.open_dataset(old)
    page = report(older=(older, compare(older, dataset)))
    section = page.locator("#changes")
    assert "0 rows added, 0 gone, 7 changed, 0 equal" in section.text_content()
    section.locator(".picture svg .before").first.wait_for(state="attached")
    assert section.locator("figure").count() == 7


def test_a_folder_leads_to_the_page_of_a_patient(opened, dataset, tmp_path):
    found = findings_of(dataset)
    subject = Subject(dataset, summarise(dataset, found), found)
    write_pages(subject, tmp_path / "pages", n_pictures=1)
    page = opened(tmp_path / "pages/index.html")
    assert tiles(page) == 1
    page.get_by_role("link", name="P7", exact=True).click()
    page.wait_for_selector("h1:has-text('Patient P7')")
    assert tiles(page) == 1
    assert page.locator("#h-diagnoses").count() == 0
    page.get_by_role("link", name="All patients").click()
    page.wait_for_selector("h1:has-text('Report on out.h5')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_axe_finds_no_violation(report, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = report(width, scheme)
    page.locator("#plots").scroll_into_view_if_needed()
    page.locator("#plots circle").first.wait_for()
    page.click("summary")
    for _ in range(2):
        found = axe.run(page).response["violations"]
        told = [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found]
        assert told == []
        page.locator(".tile").nth(1).focus()
        page.keyboard.press("Enter")  # and once more with an open row
        page.locator("#detail").wait_for()


def test_nothing_is_wider_than_a_phone(report):
    page = report(PHONE)
    page.locator("#plots").scroll_into_view_if_needed()
    page.locator("#plots circle").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE


def test_the_bar_covers_nothing_at_the_end_of_the_page(report):
    page = report(PHONE)
    page.wait_for_function("document.documentElement.style.getPropertyValue('--bar')")
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    bar = page.locator("#review").bounding_box()
    last = page.locator("#privacy p").last.bounding_box()
    assert last["y"] + last["height"] <= bar["y"]


def test_paper_shows_all_and_cuts_nothing(report):
    page = report(PAPER, "dark")
    page.emulate_media(media="print")
    warned = page.locator("strong.warning").first
    expect(warned).to_have_css("color", "rgb(138, 75, 0)")  # for white paper
    page.pdf(format="A4")
    hidden = page.locator(".picture:not(:has(img))")
    assert hidden.count() == 0  # pictures far down are made for paper, too
    assert page.locator("#plots circle").count() > 0
    assert not page.locator("#review").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= PAPER
    cut = page.evaluate(
        """[...document.querySelectorAll('body *')].filter((one) => {
          const style = getComputedStyle(one);
          const isCut = style.overflowX !== 'visible' && !one.classList.contains('picture')
            && !one.closest('svg') && one.tagName !== 'SELECT' && style.display !== 'none';
          return isCut && one.scrollWidth > one.clientWidth + 1;
        }).map((one) => one.outerHTML.slice(0, 200))"""
    )
    assert cut == []


def test_a_row_excluded_in_the_page_is_gone_from_the_next_build(tmp_path, opened):
    root = tmp_path / "data"
    (root / "contourfiles").mkdir(parents=True)
    (root / "link.csv").write_text("patient_id,original_id\nP1,A1\nP2,A2\n")
    for patient, original in (("P1", "A1"), ("P2", "A2")):
        for number in (1, 2):
            write_dicom(root, patient, f"{number}.dcm")
            write_contour(root, original, number, text=SQUARE)
    out, page_file = tmp_path / "out.h5", tmp_path / "page.html"
    build = ["build", str(root), str(out), "--size", f"{ROWS}x{COLUMNS}", "--quiet", "--force"]
    run(*build)
    run("report", str(out), "--html", str(page_file))
    page = opened(page_file)
    page.select_option("#f-patient", "P2")
    page.locator(".tile").nth(1).focus()
    page.keyboard.press("e")
    with page.expect_download() as download:
        page.click("#export")
    decided = tmp_path / "decisions.csv"
    download.value.save_as(decided)
    run(*build, "--exclude-file", str(decided))
    manifest = loader.open_dataset(out).manifest
    rows = list(zip(manifest["patient_id"].tolist(), manifest["slice"].tolist(), strict=True))
    assert rows == [("P1", 1), ("P1", 2), ("P2", 1)]


def run(*command):
    found = CliRunner().invoke(cli, command)
    assert found.exit_code == 0, found.output


def test_the_data_in_the_page_is_json(report):
    page = report()
    text = page.locator("#data").text_content()
    assert len(json.loads(text)["rows"]) == 7
