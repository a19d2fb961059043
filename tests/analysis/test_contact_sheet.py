"""A sheet shows each image whole, in its place, below its caption."""

import pytest
from PIL import Image

from hf_tl.analysis.contact_sheet import MARGIN, TEXT, Strip, write_contact_sheet
from hf_tl.errors import InputError


def test_images_stand_in_their_places(tmp_path):
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    strips = [Strip(f"strip {i}", [Image.new("RGB", (40, 20), color)] * 2) for i, color in enumerate(colors)]
    path = write_contact_sheet(tmp_path / "sheet.png", strips, title="a title", side=50, columns=2)
    with Image.open(path) as sheet:
        width, height = 2 * (50 + MARGIN) + 2 * MARGIN, 50 + TEXT + 3 * MARGIN
        assert sheet.size == (2 * width, 2 * height + 2 * TEXT)
        for i, color in enumerate(colors):
            across = MARGIN + i % 2 * width + 25
            down = 2 * TEXT + i // 2 * height + TEXT + MARGIN + 25
            assert sheet.getpixel((across, down)) == color
            assert sheet.getpixel((across + 50 + MARGIN, down)) == color
            assert sheet.getpixel((across, down - 20)) == (255, 255, 255)  # twice as wide as high: shown whole


def test_what_is_too_long_is_cut_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_tl.analysis.contact_sheet.MOST_ROWS", 2)
    strips = [Strip("a caption that is much longer than its image is wide " * 3, [Image.new("L", (9, 9))])] * 5
    path = write_contact_sheet(tmp_path / "sheet.png", strips, title="t", side=30)
    with Image.open(path) as sheet:
        assert sheet.size == (30 + 3 * MARGIN, 2 * (30 + TEXT + 3 * MARGIN) + 2 * TEXT)


def test_mistakes(tmp_path):
    strip = Strip("one", [Image.new("L", (9, 9))])
    with pytest.raises(InputError, match="there is none to show"):
        write_contact_sheet(tmp_path / "sheet.png", [], title="t")
    with pytest.raises(InputError, match=r"is a \.png file, got"):
        write_contact_sheet(tmp_path / "sheet.jpg", [strip], title="t")
    with pytest.raises(InputError, match="cannot be written"):
        write_contact_sheet(tmp_path / "no" / "folder.png", [strip], title="t")
