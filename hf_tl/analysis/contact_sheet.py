"""Contact sheets: rows of small images with a caption each, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from hf_tl.errors import InputError, in_one_line


MARGIN, TEXT = 4, 12  # pixels
MOST_ROWS = 200


@dataclass(frozen=True)
class Strip:
    """One row of a sheet.

    Attributes:
        caption: above the images.
        images: beside one another.
    """

    caption: str
    images: Sequence[Image.Image]


def write_contact_sheet(
    path: str | Path, strips: Sequence[Strip], *, title: str, side: int = 112, columns: int = 1
) -> Path:
    """Writes a PNG with a strip of images a row, or several strips beside one another.

    Args:
        path: of the file.
        strips: what is shown; the first 200 rows.
        title: above all.
        side: pixels of the square in which each image is shown whole.
        columns: strips beside one another.

    Raises:
        InputError: nothing to show, or a file that cannot be written.
    """
    if not strips:
        raise InputError("a contact sheet needs one image at least, and there is none to show")
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"a contact sheet is a .png file, got {str(path)!r}")
    shown = list(strips)[: MOST_ROWS * columns]
    longest = max(len(strip.images) for strip in shown)
    width, height = longest * (side + MARGIN) + 2 * MARGIN, side + TEXT + 3 * MARGIN
    rows = -(-len(shown) // columns)
    font = ImageFont.load_default(TEXT - 1)
    sheet = Image.new("RGB", (columns * width, rows * height + 2 * TEXT), "white")
    draw = ImageDraw.Draw(sheet)
    left_out = f" (the first {len(shown)} of {len(strips)})" if len(shown) < len(strips) else ""
    draw.text((MARGIN, MARGIN), _cut(title + left_out, columns * width, draw, font), fill="black", font=font)
    for k, strip in enumerate(shown):
        x, y = k % columns * width + MARGIN, k // columns * height + 2 * TEXT
        draw.text((x, y), _cut(strip.caption, width - 2 * MARGIN, draw, font), fill="#444444", font=font)
        for i, image in enumerate(strip.images):
            fitted = _fitted(image, side)
            across = x + i * (side + MARGIN) + (side - fitted.width) // 2
            sheet.paste(fitted, (across, y + TEXT + MARGIN + (side - fitted.height) // 2))
    try:
        sheet.save(path)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {in_one_line(error)}") from error
    return Path(path)


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """As large as fits; small images are enlarged without smoothing."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BICUBIC)


def _cut(text: str, width: int, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The text, shortened to a width in pixels."""
    while text and draw.textlength(text, font=font) > width:
        text = text[:-4] + "..." if not text.endswith("...") else text[:-4].rstrip(".") + "..."
        if len(text) <= 4:
            return text
    return text
