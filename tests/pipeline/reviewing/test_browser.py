"""The page as a person uses it, in headless Chromium."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pipeline import journal
from pipeline.config import Project
from pipeline.reviewing.server import ReviewServer, open_server
from pipeline.store import Store
from tests.pipeline.review_world import BATCHES, build
from tests.pipeline.reviewing.browser import Browser
from tests.pipeline.reviewing.process import started

pytestmark = pytest.mark.browser
SHIFT, ALT = 8, 1


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    made = Browser()
    yield made
    made.close()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return build(tmp_path, monkeypatch, review={"overlap": 0.0})


@pytest.fixture
def server(project: Project) -> Iterator[ReviewServer]:
    made = open_server(project, "ann", 0)
    threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def page(chromium: Browser, server: ReviewServer) -> Iterator[Browser]:
    chromium.problems.clear()
    chromium.requests.clear()
    chromium.resize(1360, 860)
    chromium.open(server.url)
    chromium.await_("document.getElementById('photo').naturalWidth > 0")
    yield chromium
    problems = list(chromium.problems)
    chromium.open("about:blank")  # or what it still waits for would fail, in the next test, with the photos gone
    assert problems == []
    asked = {urlsplit(url).hostname for url in chromium.requests if not url.startswith(("data:", "about:"))}
    assert asked <= {"127.0.0.1"}


def written(project: Project) -> list[dict[str, Any]]:
    store = Store(project.store_uri)
    rows = [row for b in BATCHES for row in journal.read(store, b).to_pylist()]
    return sorted(rows, key=lambda row: row["at"])


def saved(page: Browser, count: int) -> None:
    page.await_(f"document.getElementById('count').innerText.startsWith('{count} of')")
    page.await_("document.getElementById('saved').innerText !== 'saving 1…'")


def test_a_queue_by_keyboard_alone(page: Browser, project: Project, server: ReviewServer) -> None:
    verdicts = "ynyyn" * 3 + "yny"
    for k in verdicts:
        page.key(k)
    page.await_("!document.getElementById('done').hidden")
    saved(page, 18)
    assert page.text("done-title") == "All done" and "cvp run pets" in page.text("done-text")
    asked = [item.label["annotation_id"] for _, item, _ in server.desk.items(0, 18)]
    said = {row["annotation_id"]: row["verdict"] for row in written(project)}
    assert [said[name] for name in asked] == [{"y": "yes", "n": "no"}[k] for k in verdicts]


def test_skip_back_and_undo(page: Browser, project: Project) -> None:
    page.key("ArrowRight")
    page.key("y")
    page.key("n")
    saved(page, 2)
    page.key("u")
    saved(page, 1)
    assert [row["verdict"] for row in written(project)] == ["yes", "no", "undo"]
    page.await_("document.getElementById('verdict').hidden")
    page.key("ArrowLeft")
    page.await_("document.getElementById('verdict').innerText === 'You said yes'")
    page.open(page.run("location.href"))  # loaded again, it begins where a question is open
    page.await_("document.getElementById('count').innerText === '1 of 18'")
    assert page.run("document.getElementById('verdict').hidden") is True


def box_on_screen(page: Browser) -> tuple[float, float, float, float]:
    found = page.run("(() => { const r = document.querySelector('.box').getBoundingClientRect();"
                     " return [r.left, r.top, r.right, r.bottom] })()")  # fmt: skip
    return tuple(found)  # type: ignore[return-value]


def scale(page: Browser) -> float:
    """Screen pixels to a pixel of the photo."""
    return float(page.run("document.getElementById('frame').getBoundingClientRect().width /"
                          " document.getElementById('overlay').viewBox.baseVal.width"))  # fmt: skip


def test_a_box_is_fixed_by_dragging(page: Browser, project: Project) -> None:
    page.key("f")
    page.await_("document.querySelectorAll('.handle').length === 8")
    x1, y1, x2, y2 = box_on_screen(page)
    size = scale(page)
    page.drag((x2, y2), (x2 + 6 * size, y2 + 4 * size))  # its lower right corner
    page.drag(((x1 + x2) / 2, (y1 + y2) / 2), ((x1 + x2) / 2 + 3 * size, (y1 + y2) / 2 - 2 * size))  # all of it
    page.key("Enter")
    saved(page, 1)
    (row,) = written(project)
    assert row["verdict"] == "fix" and row["class_name"] == row["asked_class"]
    moved = [row[k] - row[f"asked_{k}"] for k in ("x1", "y1", "x2", "y2")]
    assert moved == pytest.approx([3, -2, 9, 2], abs=0.6)


def test_a_box_is_drawn_anew_or_moved_by_keys_and_cancelled(page: Browser, project: Project) -> None:
    page.key("w")
    page.key("f")
    frame = page.run("(() => { const r = document.getElementById('frame').getBoundingClientRect();"
                     " return [r.left, r.top] })()")  # fmt: skip
    size = scale(page)

    def at(x: float, y: float) -> tuple[float, float]:
        return frame[0] + x * size, frame[1] + y * size

    page.drag(at(100, 80), at(140, 110))
    page.key("ArrowRight")
    page.key("ArrowDown", SHIFT)
    page.key("ArrowLeft", ALT)
    page.key("Enter")
    saved(page, 1)
    (row,) = written(project)
    assert [row[k] for k in ("x1", "y1", "x2", "y2")] == pytest.approx([101, 90, 140, 120], abs=0.6)
    page.key("f")
    page.drag(at(10, 10), at(30, 30))
    page.key("Escape")
    assert page.run("document.getElementById('fixing').hidden") is True and len(written(project)) == 1


def test_help_opens_and_closes(page: Browser, project: Project) -> None:
    page.key("?")
    page.await_("document.getElementById('help').open")
    page.key("y")  # goes to the dialog, not to the queue
    page.run("document.querySelector('#help button').click()")
    page.await_("!document.getElementById('help').open")
    assert written(project) == []


def test_another_class_by_its_number(page: Browser, project: Project) -> None:
    other = {"cat": "2", "dog": "1"}[page.run("document.querySelector('#question em').innerText")]
    page.key(other)
    page.key("Enter")
    saved(page, 1)
    (row,) = written(project)
    assert row["verdict"] == "fix" and {row["class_name"], row["asked_class"]} == {"cat", "dog"}
    assert row["x1"] == row["asked_x1"]


def test_with_a_finger_on_a_phone(page: Browser, project: Project, tmp_path: Path) -> None:
    page.resize(390, 844, 2)
    page.await_("document.getElementById('frame').getBoundingClientRect().width <= 390")
    assert page.run("document.documentElement.scrollWidth <= innerWidth") is True
    for name in ("yes", "no", "fix", "undo", "skip"):
        low, high = page.run(f"(() => {{ const r = document.getElementById('{name}').getBoundingClientRect();"
                             " return [r.height, r.bottom] })()")  # fmt: skip
        assert low >= 40 and high <= 844
    page.click("yes")
    page.click("no")
    saved(page, 2)
    page.click("fix")
    page.click("cancel")
    assert [row["verdict"] for row in written(project)] == ["yes", "no"]
    page.shot(tmp_path / "phone.png")
    assert (tmp_path / "phone.png").stat().st_size > 10_000


def test_a_label_of_hostile_names_is_only_text(
    chromium: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "<img src=x onerror=document.title='hit'>"
    made = build(tmp_path, monkeypatch, classes={"cat": {}, "dog": {}, evil: {}})
    store = Store(made.store_uri)
    for name in ("labels", "review_queue"):
        rows = store.read(name, BATCHES[0])
        place = rows.column_names.index("class_name")
        store.write(name, rows.set_column(place, rows.schema.field(place), [[evil] * rows.num_rows]), BATCHES[0])
    server = open_server(made, "ann", 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    chromium.open(server.url)
    chromium.await_("document.getElementById('photo').naturalWidth > 0")
    for _ in range(3):
        chromium.key("ArrowRight")
    assert evil in chromium.text("classes") and chromium.run("document.title") == "Review · pets"
    server.shutdown()
    server.server_close()


def test_when_the_server_dies_nothing_is_shown_as_saved_and_nothing_is_lost(
    chromium: Browser, project: Project
) -> None:
    process, port, _ = started(project)
    try:
        chromium.resize(1360, 860)
        chromium.open(f"http://127.0.0.1:{port}/")
        chromium.await_("document.getElementById('photo').naturalWidth > 0")
        chromium.key("y")
        saved(chromium, 1)
        process.kill()
        process.wait()
        chromium.key("y")
        chromium.await_("!document.getElementById('alarm').hidden")
        assert "Not saved" in chromium.text("alarm-text") and chromium.text("saved").startswith("saving 1")
        chromium.key("n")  # refused while something waits
        process, _, _ = started(project, port)
        chromium.click("retry")
        saved(chromium, 2)
        assert [row["verdict"] for row in written(project)] == ["yes", "yes"]
    finally:
        process.kill()
        process.wait()


def test_a_picture_that_cannot_be_read_can_be_skipped(chromium: Browser, project: Project) -> None:
    for path in Store(project.store_uri).read("images", sorted(BATCHES)[0]).column("uri").to_pylist():
        Path(path).write_bytes(b"x")
    server = open_server(project, "ann", 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    chromium.open(server.url)
    chromium.await_("!document.getElementById('broken').hidden")
    assert "not an image" in chromium.text("broken")
    chromium.key("ArrowRight")
    chromium.await_("document.getElementById('broken').hidden && document.getElementById('photo').naturalWidth > 0")
    server.shutdown()
    server.server_close()


def test_another_site_cannot_decide(page: Browser, server: ReviewServer, project: Project) -> None:
    """A page of another origin, in the same browser, tries with all that a browser lets it send."""
    key = server.desk.items(0, 1)[0][1].key
    body = f'{{"key": "{key}", "verdict": "no"}}'
    port = server.server_port
    page.open("about:blank")  # an opaque origin
    script = f"""(async () => {{
      const tried = [];
      for (const headers of [{{}}, {{"Content-Type": "text/plain"}}]) for (const mode of ["cors", "no-cors"])
        for (const host of ["127.0.0.1", "localhost"]) try {{
          const to = `http://${{host}}:{port}/api/decisions`;
          tried.push((await fetch(to, {{method: "POST", mode, headers, body: '{body}'}})).status);
        }} catch {{ tried.push("refused"); }}
      return tried;
    }})()"""
    assert set(page.run(script)) <= {"refused", 0}
    address = f"http://127.0.0.1:{port}/picture/{key}/near"
    loaded = page.run(f"new Promise(done => {{ const i = new Image(); i.onload = () => done(true);"
                      f" i.onerror = () => done(false); i.src = '{address}'; }})")  # fmt: skip
    assert loaded is False and written(project) == []
    page.problems.clear()
    page.requests.clear()
