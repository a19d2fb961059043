"""One photo as its camera, scanner and editor may have saved it."""

from pathlib import Path

import numpy as np
from PIL import Image


def odd_photos(folder: Path, source: Path) -> Path:
    """A new folder of files of one photo, in sub-folders too, with one that is none and a text beside them."""
    folder.mkdir()
    photo = Image.open(source).convert("RGB")
    photo.save(folder / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    photo.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    (folder / "deep" / "er").mkdir(parents=True)
    photo.convert("RGBA").save(folder / "deep" / "rgba.png")
    photo.convert("CMYK").save(folder / "deep" / "er" / "cmyk.tiff")
    grey = np.asarray(photo.convert("L"))
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 256).save(folder / "grey16.png")
    Image.fromarray(grey.astype(np.float32) / 255).save(folder / "float.tiff")
    photo.quantize(64).save(folder / "palette.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    (folder / "notes.txt").write_text("of the trip")
    return folder
