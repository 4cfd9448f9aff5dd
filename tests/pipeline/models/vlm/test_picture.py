from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.images import decode
from pipeline.models.vlm import View, session
from pipeline.models.vlm.picture import draw, window
from tests.pipeline.chat_server import ChatServer
from tests.pipeline.photo_rows import row, speckled
from tests.pipeline.verifier_world import KEY, VARIABLE, config, questions, verifier

GROUND = np.full((400, 600, 3), 90, np.uint8)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def with_secrets(path: Path) -> None:
    """A photograph whose file tells where it was taken, by whom, and shows a thumbnail."""
    exif = Image.Exif()
    exif[0x010F], exif[0x013B], exif[0x8298] = "SecretCamera", "Jane Secret", "secret rights"
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 14.0), 3: "E", 4: (11.0, 34.0, 31.0)})
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0secret comment"
    Image.fromarray(speckled(3)).save(path, "JPEG", exif=exif, comment=b"secret words", icc_profile=b"secret profile")
    assert b"secret" in path.read_bytes().lower() and Image.open(path).getexif().get_ifd(0x8825)


def test_nothing_but_pixels_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the wire, from a file with GPS position, names, comments and a profile."""
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setattr(session, "_FIRST_PAUSE", 0.01)
    path = tmp_path / "Jane Secret's house.jpg"
    with_secrets(path)
    from pipeline import schema

    images = schema.table("images").from_rows([row(path, 80, 60)])
    with ChatServer().running() as server:
        verifier(config(server.url), tmp_path).ask(questions(images, 1), images)
    (body,) = server.bodies
    picture = base64.b64decode(body["messages"][0]["content"][1]["image_url"]["url"].split(",")[1])
    image = opened(picture)
    assert not dict(image.getexif()) and not {"exif", "comment", "icc_profile"} & set(image.info)
    markers = [picture[i + 1] for i in range(len(picture) - 1) if picture[i] == 0xFF and 0xE1 <= picture[i + 1] <= 0xFE]
    assert not [m for m in markers if m in (0xE1, 0xE2, 0xED, 0xFE)], "no EXIF, profile, IPTC or comment segments"
    everything = (str(body) + str(server.headers) + picture.decode("latin-1")).replace(KEY, "").lower()
    assert "secret" not in everything and "jane" not in everything


def test_a_crop_shows_the_box_and_its_surroundings() -> None:
    pixels = GROUND.copy()
    pixels[100:200, 200:350] = (0, 200, 0)
    image = np.asarray(opened(draw([pixels], View(("a",), (200, 100, 350, 200), 768, 0.5))))
    assert image.shape[:2] == (200, 300)  # the box and half its sides around it, and no larger than it is
    inside = image[55:145, 80:220].reshape(-1, 3).astype(int)
    assert (abs(inside - [0, 200, 0]).max(axis=1) < 40).mean() > 0.98, "the thing is not drawn over"
    red = (image[:, :, 0] > 180) & (image[:, :, 1] < 110)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert rows[0] == pytest.approx(49, abs=2) and rows[-1] == pytest.approx(150, abs=2)
    assert columns[0] == pytest.approx(74, abs=2) and columns[-1] == pytest.approx(225, abs=2)


def test_pictures_are_no_larger_than_asked_for() -> None:
    assert opened(draw([GROUND], View(("a",), None, 128))).size == (128, 85)
    assert opened(draw([GROUND], View(("a",), None, 4000))).size == (600, 400)
    assert max(opened(draw([GROUND], View(("a",), (0, 0, 600, 400), 200))).size) == 200
    assert opened(draw([GROUND] * 5, View(tuple("abcde"), None, 300))).size == (300, 200)
    # A thing of five pixels is shown with its surroundings.
    assert opened(draw([GROUND], View(("a",), (300, 200, 305, 205), 768))).size[0] >= 96


@given(
    st.tuples(*[st.floats(-50, 700, allow_nan=False)] * 4), st.integers(1, 600), st.integers(1, 400), st.floats(0, 3)
)
def test_any_box_gives_a_window_inside_the_image(
    box: tuple[float, ...], width: int, height: int, context: float
) -> None:
    corners = np.clip(box, 0, [width, height, width, height])
    x1, x2 = sorted((corners[0], corners[2]))
    y1, y2 = sorted((corners[1], corners[3]))
    left, top, right, bottom = window((x1, y1, x2, y2), width, height, context)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert left <= x1 and x2 <= right and top <= y1 and y2 <= bottom


def test_the_file_itself_is_never_sent(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with_secrets(path)
    data = draw([decode(path.read_bytes()).pixels], View(("a",), None, 1000))
    assert data != path.read_bytes() and opened(data).size == (80, 60)
