from __future__ import annotations

import http.client
import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import decisions, journal, masks, schema
from pipeline.config import Project
from pipeline.errors import ConfigError, DataError, StoreError
from pipeline.journal import Journal
from pipeline.reviewing import items, pictures
from pipeline.reviewing.items import Desk
from pipeline.reviewing.server import ReviewServer, open_server
from pipeline.store import Store
from tests.pipeline.decided import decision
from tests.pipeline.review_world import BATCHES, HEIGHT, WIDTH, build

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return build(tmp_path, monkeypatch, review={"overlap": 0.0})


class Page:
    """What a browser on our own page would send."""

    def __init__(self, server: ReviewServer) -> None:
        self.server = server
        self.headers = {"X-CVP-Token": server.token, "Origin": server.url.rstrip("/"), "Sec-Fetch-Site": "same-origin"}

    def ask(self, method: str, path: str, body: Any = None, **headers: str | None) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=20)
        given = {**self.headers, **({"Content-Type": "application/json"} if body is not None else {}), **headers}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.putrequest(method, path, skip_host="Host" in given)
        for key, value in given.items():
            if value is not None:
                connection.putheader(key, value)
        if data is not None and "Content-Length" not in given:
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders()
        if data:
            connection.send(data)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), content

    def json(self, method: str, path: str, body: Any = None, status: int = 200, **headers: str | None) -> Any:
        got, _, content = self.ask(method, path, body, **headers)
        assert got == status, content
        return json.loads(content)

    def items(self) -> list[dict[str, Any]]:
        return self.json("GET", "/api/items?from=0&count=100")["items"]

    def decide(self, key: str, verdict: str, status: int = 200, **more: Any) -> Any:
        return self.json("POST", "/api/decisions", {"key": key, "verdict": verdict, **more}, status)


@pytest.fixture
def page(project: Project) -> Iterator[Page]:
    server = open_server(project, "ann", 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield Page(server)
    server.shutdown()
    server.server_close()
    server.desk.close()


def written(project: Project) -> list[dict[str, Any]]:
    store = Store(project.store_uri)
    return [row for b in BATCHES for row in journal.read(store, b).to_pylist()]


# -- what is asked -----------------------------------------------------------------------------------


def test_the_queue_in_order_of_rank_over_all_batches(page: Page) -> None:
    session = page.json("GET", "/api/session")
    assert session["classes"] == ["cat", "dog"] and session["reviewer"] == "ann"
    assert session["progress"] == {"total": 18, "done": 0, "first": 0, "yes": 0, "no": 0, "fix": 0}
    found = page.items()
    assert [i["number"] for i in found] == list(range(18)) and len({i["key"] for i in found}) == 18
    assert [i["batch"] for i in found[:4]] == sorted(BATCHES) * 2
    assert page.json("GET", "/api/items?from=16&count=5")["items"] == found[16:]
    assert page.json("GET", "/api/items?from=900&count=5")["items"] == []


def test_other_labels_of_the_image_are_shown(page: Page) -> None:
    first = page.items()[0]
    others = page.json("GET", f"/api/others/{first['key']}")
    assert len(others) == 3 and {o["status"] for o in others} == {"needs_review", "accepted"}


def test_views_show_the_right_part(page: Page) -> None:
    first = page.items()[0]
    x, y, width, height = first["near"]
    assert x <= first["box"][0] and first["box"][3] <= y + height
    for view, size in (("near", (width, height)), ("whole", (WIDTH, HEIGHT))):
        status, headers, data = page.ask("GET", f"/picture/{first['key']}/{view}")
        assert status == 200 and headers["Content-Type"] == "image/jpeg" and "immutable" in headers["Cache-Control"]
        assert Image.open(io.BytesIO(data)).size == size
    masked = next(i for i in page.items() if i["masked"])
    _, headers, data = page.ask("GET", f"/mask/{masked['key']}/whole")
    alpha = np.asarray(Image.open(io.BytesIO(data)))[..., 3]
    assert headers["Content-Type"] == "image/png" and (alpha > 0).sum() == 18 * 23
    assert page.ask("GET", f"/mask/{first['key']}/whole")[0] == 404


@pytest.mark.parametrize("box", [(0, 0, 4, 4), (150, 100, 160, 120), (0, 0, 160, 120), (70.5, 50.5, 90.25, 60), None])
def test_windows_lie_in_the_image_around_the_box(box: tuple[float, ...] | None) -> None:
    corners = dict(zip(("x1", "y1", "x2", "y2"), box or (None,) * 4, strict=True))
    item = items.Item("k", {"width": WIDTH, "height": HEIGHT}, corners, "")
    for view in pictures.VIEWS:
        x, y, width, height = pictures.window(item, view)
        assert min(x, y) >= 0 and min(width, height) >= 1 and x + width <= WIDTH and y + height <= HEIGHT
        if box:
            assert x <= box[0] and y <= box[1] and box[2] <= x + width and box[3] <= y + height


def test_pictures_are_rendered_once_and_old_ones_go(
    project: Project, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = page.items()[0]
    _, _, data = page.ask("GET", f"/picture/{first['key']}/near")
    for path in (Store(project.store_uri).read("images").column("uri")).to_pylist():
        Path(path).unlink()
    assert page.ask("GET", f"/picture/{first['key']}/near")[2] == data
    folder = page.server.pictures._folder
    assert len([p for p in folder.rglob("*") if p.is_file()]) == 1
    monkeypatch.setattr(pictures, "_CACHE_BYTES", 0)
    pictures.Pictures(page.server.pictures._reader, folder)
    assert not [p for p in folder.rglob("*") if p.is_file()]


def test_one_bad_picture_fails_only_itself(project: Project, page: Page) -> None:
    found = page.items()
    bad = {r["image_id"]: r["uri"] for r in Store(project.store_uri).read("images").to_pylist()}
    name = page.server.desk.item(found[0]["key"]).image["image_id"]
    Path(bad[name]).write_bytes(b"nothing")
    status, _, data = page.ask("GET", f"/picture/{found[0]['key']}/near")
    assert status == 410 and "not an image" in json.loads(data)["error"]
    other = next(i for i in found if page.server.desk.item(i["key"]).image["image_id"] != name)
    assert page.ask("GET", f"/picture/{other['key']}/near")[0] == 200
    page.decide(found[0]["key"], "no")


# -- what is decided -----------------------------------------------------------------------------------


def test_decisions_are_written_as_they_are_made(project: Project, page: Page) -> None:
    one, two, three = page.items()[:3]
    answer = page.decide(one["key"], "yes")
    (row,) = written(project)
    assert answer["decision_id"] == row["decision_id"] and answer["progress"]["done"] == 1
    assert row["verdict"] == "yes" and row["reviewer"] == "ann" and row["source"] == "page"
    assert [row[k] for k in ("x1", "y1", "x2", "y2")] == one["box"] and row["class_name"] == one["class"]
    page.decide(two["key"], "no")
    box = [1.234, 2, 30, 40]
    assert page.decide(three["key"], "fix", box=box, **{"class": "dog"})["progress"]["fix"] == 1
    fixed = next(r for r in written(project) if r["verdict"] == "fix")
    assert [fixed[k] for k in ("x1", "y1", "x2", "y2")] == pytest.approx([1.23, 2, 30, 40])
    assert fixed["class_name"] == "dog" and fixed["asked_class"] == three["class"]
    assert fixed["asked_x1"] == three["box"][0]
    said = {i["key"]: i["said"] for i in page.items()}
    assert said[three["key"]]["verdict"] == "fix" and said[two["key"]]["verdict"] == "no"
    assert page.json("GET", "/api/session")["progress"]["first"] == 3


def test_a_fix_that_changes_nothing_is_a_yes(project: Project, page: Page) -> None:
    one, two = page.items()[:2]
    assert page.decide(one["key"], "fix", box=one["box"], **{"class": one["class"]})["verdict"] == "yes"
    assert page.decide(two["key"], "fix", **{"class": "cat" if two["class"] == "dog" else "dog"})["verdict"] == "fix"


def test_masks_stay_unless_the_box_moves(project: Project, page: Page) -> None:
    masked = next(i for i in page.items() if i["masked"])
    page.decide(masked["key"], "yes")
    x1, y1, x2, y2 = masked["box"]
    page.decide(masked["key"], "fix", box=[x1 + 1, y1, x2, y2])
    assert [r["mask"] is None for r in written(project)] == [False, True]


def test_the_other_mask_is_an_outline_over_peoples() -> None:
    people, other = np.zeros((2, 12, 16), bool)
    people[2:8, 2:8], other[3:9, 3:9] = True, True
    image, label = {"width": 16, "height": 12}, {"mask": masks.encode(people)}
    part = 1, 1, 10, 10
    plain, both = (
        np.asarray(Image.open(io.BytesIO(pictures._tinted(items.Item("k", image, label, "", o), part, 99))))
        for o in (None, masks.encode(other))
    )
    np.testing.assert_array_equal(plain[..., 3] > 0, people[1:11, 1:11])
    rim = (both == pictures._RIM).all(axis=2)
    core = np.zeros_like(other)
    core[4:8, 4:8] = True
    np.testing.assert_array_equal(rim, (other & ~core)[1:11, 1:11])
    np.testing.assert_array_equal(both[~rim], plain[~rim])


def test_undo_goes_back_one_by_one_and_survives_a_restart(project: Project, page: Page) -> None:
    one, two = page.items()[:2]
    page.decide(one["key"], "yes")
    page.decide(two["key"], "no")
    page.decide(two["key"], "yes")
    assert page.json("POST", "/api/undo", {})["key"] == two["key"]
    assert {i["key"]: i["said"] for i in page.items()}[two["key"]]["verdict"] == "no"
    again = Desk(project, Store(project.store_uri), "ann", 0.0)
    assert again.undo() is not None and again.progress()["done"] == 1
    assert again.undo()[0] == one["key"]  # type: ignore[index]
    assert again.undo() is None and again.progress()["done"] == 0
    store = Store(project.store_uri)
    assert decisions.current(store, project.config).equals(
        store.read("labels").sort_by(
            [("batch", "ascending"), ("image_id", "ascending"), ("annotation_id", "ascending")]
        )
    )


@pytest.mark.parametrize(
    "body",
    [
        {"verdict": "maybe"}, {"verdict": "undo"}, {"verdict": "add"}, {"verdict": 5}, {},
        {"verdict": "fix", "class": "cow"}, {"verdict": "fix", "class": 3},
        {"verdict": "fix", "box": [1, 2, 3]}, {"verdict": "fix", "box": [5, 5, 5, 9]},
        {"verdict": "fix", "box": [900, 900, 999, 999]}, {"verdict": "fix", "box": ["a", 0, 9, 9]},
        {"verdict": "fix", "box": [1, 2, float("nan"), 4]}, {"verdict": "fix", "box": [True, 0, 9, 9]},
    ],
)  # fmt: skip
def test_decisions_that_cannot_be(project: Project, page: Page, body: dict[str, Any]) -> None:
    key = page.items()[0]["key"]
    assert "error" in page.json("POST", "/api/decisions", {"key": key, **body}, status=422)
    assert "error" in page.json("POST", "/api/decisions", {"verdict": "yes", "key": "none"}, status=422)
    assert written(project) == []


def test_no_acknowledgement_before_fsync(project: Project, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk works, no answer; when it fails, an error, and the label stays open."""
    first, second = page.items()[:2]
    page.decide(second["key"], "yes")
    reached, go_on = threading.Event(), threading.Event()
    real = os.fsync

    def slow(descriptor: int) -> None:
        reached.set()
        assert go_on.wait(10)
        real(descriptor)

    answers: list[Any] = []
    monkeypatch.setattr(os, "fsync", slow)
    thread = threading.Thread(target=lambda: answers.append(page.decide(first["key"], "yes")))
    thread.start()
    assert reached.wait(10)
    thread.join(0.4)
    assert answers == []
    go_on.set()
    thread.join(10)
    assert answers[0]["decision_id"] in {r["decision_id"] for r in written(project)}

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    third = page.items()[4]
    refused = page.decide(third["key"], "yes", status=500)["error"]
    assert "cannot write to" in refused and "_decisions" in refused
    monkeypatch.setattr(os, "fsync", real)
    assert page.json("GET", "/api/session")["progress"]["done"] == 2
    page.decide(third["key"], "yes")
    assert len(written(project)) == 3


def test_many_at_once(project: Project, page: Page) -> None:
    keys = [i["key"] for i in page.items()]
    threads = [threading.Thread(target=page.decide, args=(key, "yes")) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written(project)) == 18 and page.json("GET", "/api/session")["progress"]["done"] == 18


# -- who may ask ---------------------------------------------------------------------------------------


def test_it_listens_on_loopback_only(page: Page) -> None:
    assert page.server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421), ({"Host": "evil.example:{port}"}, 421), ({"Host": "127.0.0.1"}, 421),
        ({"Host": "localhost:{port}", "Origin": "http://localhost:{port}"}, 200), ({"Host": None}, 421),
        ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403), ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403), ({"X-CVP-Token": "wrong"}, 403), ({"X-CVP-Token": None}, 403),
        ({"Content-Type": "text/plain"}, 415), ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Length": "99999999"}, 415), ({"Content-Length": "-1"}, 415), ({"Content-Type": None}, 415),
        ({"Origin": None, "Sec-Fetch-Site": None}, 200),
    ],
)  # fmt: skip
def test_other_origins_and_forged_requests_are_refused(
    project: Project, page: Page, headers: dict[str, str | None], status: int
) -> None:
    key = page.items()[0]["key"]
    filled = {k: v and v.replace("{port}", str(page.server.server_port)) for k, v in headers.items()}
    got, _, _ = page.ask("POST", "/api/decisions", {"key": key, "verdict": "yes"}, **filled)
    assert got == status and len(written(project)) == (status == 200)


@pytest.mark.parametrize("path", ["/", "/app.js", "/api/session", "/picture/{key}/near", "/mask/{key}/near"])
@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_nothing_is_shown_to_others(page: Page, path: str, headers: dict[str, str]) -> None:
    key = next(i["key"] for i in page.items() if i["masked"])
    assert page.ask("GET", path.replace("{key}", key), **headers)[0] in (403, 421)


def test_tables_are_not_read_without_the_token(page: Page) -> None:
    key = page.items()[0]["key"]
    for path in ("/api/session", "/api/items?from=0&count=1", f"/api/others/{key}"):
        assert page.ask("GET", path, **{"X-CVP-Token": "x"})[0] == 403


@pytest.mark.parametrize(
    "path",
    ["/../server.py", "/static/app.js", "/app.js/..", "/picture/x/near", "/picture/{key}/../near", "/picture/{key}/big",
     "//etc/passwd", "/api", "/api/items", "/api/items?from=-1&count=5", "/api/items?from=a&count=b", "/%2e%2e/x"],
)  # fmt: skip
def test_paths_that_lead_nowhere(page: Page, path: str) -> None:
    status, _, data = page.ask("GET", path.replace("{key}", page.items()[0]["key"]))
    assert status in (400, 404, 422) and "error" in json.loads(data)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 50_000])
def test_bodies_that_are_none(page: Page, body: bytes) -> None:
    status, headers, _ = page.ask("POST", "/api/decisions", body)
    assert status in (400, 415) and headers["Connection"] == "close"


def test_other_methods_are_unknown(page: Page) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert page.ask(method, "/")[0] == 501
    assert page.ask("HEAD", "/")[::2] == (200, b"")


def test_the_page_is_closed_to_the_outside(page: Page) -> None:
    status, headers, data = page.ask("GET", "/")
    policy = headers["Content-Security-Policy"]
    assert status == 200 and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers and page.server.token.encode() in data
    for name in ("/", "/app.js", "/app.css", "/icon.svg"):
        text = page.ask("GET", name)[2].decode().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text and "//cdn" not in text


def test_names_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes from files goes to the page as JSON only; the page's own text is escaped."""
    made = build(tmp_path, monkeypatch)
    server = open_server(made, HOSTILE, 0)
    server.desk.project.config.__dict__["name"] = HOSTILE
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    text = Page(server).ask("GET", "/")[2].decode()
    assert HOSTILE not in text and "&lt;script&gt;" in text
    script = (Path(items.__file__).parent / "static" / "app.js").read_text()
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script and "document.write" not in script
    server.shutdown()
    server.server_close()


# -- several people --------------------------------------------------------------------------------------


def desk(project: Project, name: str, overlap: float = 0.0) -> Desk:
    return Desk(project, Store(project.store_uri), name, overlap)


def keys(someone: Desk) -> list[str]:
    return [item.key for _, item, _ in someone.items(0, 100)]


def test_nobody_is_asked_what_somebody_has_decided(project: Project) -> None:
    ann, ben = desk(project, "ann"), desk(project, "ben")
    first = keys(ann)[0]
    ann.decide(first, "yes", None, None)
    ben.refresh()
    assert first not in keys(ben) and ben.progress()["total"] == 17
    assert keys(desk(project, "ann"))[0] == first  # her own, to look at again


def test_everybody_is_asked_the_shared_part(project: Project) -> None:
    ann = desk(project, "ann", 1.0)
    for key in keys(ann):
        ann.decide(key, "yes", None, None)
    assert desk(project, "ben", 1.0).progress() == {"total": 18, "done": 0, "first": 0, "yes": 0, "no": 0, "fix": 0}
    some = desk(project, "ben", 0.4)
    assert 0 < some.progress()["total"] < 18 and keys(some) == keys(desk(project, "cal", 0.4))


def test_a_disagreement_is_a_third_person_s_first_question(project: Project) -> None:
    ann, ben = desk(project, "ann", 1.0), desk(project, "ben", 1.0)
    last = keys(ann)[-1]
    ann.decide(last, "yes", None, None)
    ben.decide(last, "no", None, None)
    cal = desk(project, "cal")
    (_, first, said), *_ = cal.items(0, 1)
    assert first.key == last and first.reason == "two people disagree" and said is None
    assert cal.progress()["total"] == 18
    cal.decide(last, "no", None, None)
    assert last not in keys(desk(project, "dan"))
    current = decisions.current(Store(project.store_uri), project.config)
    assert dict(zip(*(current.column(c).to_pylist() for c in ("annotation_id", "status")), strict=True))[
        first.label["annotation_id"]
    ] == "rejected"  # fmt: skip


def test_a_new_run_is_seen_when_the_page_is_loaded_again(project: Project, page: Page) -> None:
    store = Store(project.store_uri)
    store.write("review_queue", store.read("review_queue", BATCHES[0]).slice(0, 2), BATCHES[0], fingerprint="new")
    assert page.json("GET", "/api/session")["progress"]["total"] == 18
    page.ask("GET", "/")
    assert page.json("GET", "/api/session")["progress"]["total"] == 11


def test_labels_that_have_gone_are_not_asked(project: Project) -> None:
    store = Store(project.store_uri)
    gone = store.read("labels", BATCHES[0]).slice(1)
    store.write("labels", gone, BATCHES[0])
    assert desk(project, "ann").progress()["total"] == 17


def test_image_level_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build(tmp_path, monkeypatch, images=1, boxes=1, task="classification")
    store = Store(made.store_uri)
    for batch in BATCHES:
        rows = [r | dict.fromkeys(("x1", "y1", "x2", "y2")) for r in store.read("labels", batch).to_pylist()]
        store.write("labels", schema.table("labels").from_rows(rows), batch)
    someone = desk(made, "ann")
    key = keys(someone)[0]
    assert someone.item(key).box is None and someone.others(someone.item(key)).num_rows == 0
    row = someone.decide(key, "fix", "dog", [1.0, 2.0, 3.0, 4.0])
    assert row["class_name"] == "dog" and row["x1"] is None and row["verdict"] == "fix"


# -- opening ---------------------------------------------------------------------------------------------


def test_what_stops_it_is_told(project: Project, page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="reviewer"):
        open_server(project, " ")
    with pytest.raises(ConfigError, match="cannot listen"):
        open_server(project, "ann", page.server.server_port)
    monkeypatch.setenv("CVP_HOME", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="no review queue yet"):
        open_server(project, "ann", 0)


def test_an_empty_queue_is_no_error(project: Project) -> None:
    store = Store(project.store_uri)
    for batch in BATCHES:
        store.write("review_queue", schema.table("review_queue").empty(), batch)
    assert desk(project, "ann").progress()["total"] == 0 and desk(project, "ann").undo() is None


def test_decisions_of_other_tools_count(project: Project) -> None:
    store = Store(project.store_uri)
    row = store.read("review_queue", BATCHES[0]).to_pylist()[0]
    made = decision(row["annotation_id"], "no", "ann", image_id=row["image_id"], batch=row["batch"], source="cvat")
    Journal(store).append([made])
    assert desk(project, "ann").progress()["no"] == 1 and desk(project, "ben").progress()["total"] == 17
