"""Images of all kinds are loaded as upright RGB uint8; errors name the image."""

from __future__ import annotations

import io
import logging
import os

import builders
import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageFile, ImageOps
from PIL.PngImagePlugin import PngInfo

from text2seg.errors import ImageError
from text2seg.io import images
from text2seg.io.images import load_image, measure

HEIGHT, WIDTH = builders.HW


def ramp(dtype: type = np.uint8, top: int = 255) -> np.ndarray:
    """Return a grey ramp from 0 to top, [24, 32]."""
    return np.linspace(0, top, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(dtype)


def saved(tmp_path, image: PillowImage.Image, name: str, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def as_bytes(image: PillowImage.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_path_text_pillow_and_array_are_the_same_image(tmp_path):
    pixels = builders.pixels()
    path = saved(tmp_path, PillowImage.fromarray(pixels), "a.png")
    for source in (path, str(path), PillowImage.open(path), PillowImage.fromarray(pixels), pixels):
        image = load_image(source)
        np.testing.assert_array_equal(image.pixels, pixels)
        assert image.hw == (HEIGHT, WIDTH)


def test_names_and_ids(tmp_path):
    path = saved(tmp_path, PillowImage.fromarray(builders.pixels()), "фото 写真 é.png")
    assert load_image(path).file_name == "фото 写真 é.png"
    assert load_image(PillowImage.open(path)).file_name == "фото 写真 é.png"
    assert load_image(builders.pixels()).file_name == ""
    image = load_image(path, image_id=7, file_name="sub/a.png")
    assert (image.image_id, image.file_name) == (7, "sub/a.png")


def test_a_grey_array_becomes_rgb():
    image = load_image(ramp())
    np.testing.assert_array_equal(image.pixels, np.stack([ramp()] * 3, axis=2))


def test_the_array_is_copied():
    pixels = builders.pixels()
    image = load_image(pixels)
    pixels[:] = 0
    assert image.pixels.any()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 6, 3), np.float32),
        np.zeros((4, 6, 4), np.uint8),
        np.zeros((3, 4, 6), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((0, 6, 3), np.uint8),
        np.zeros((4, 6), np.bool_),
    ],
)
def test_a_wrong_array_is_refused_with_the_expected_dtype_and_shape(array):
    with pytest.raises(ImageError, match=r"RGB uint8\[H, W, 3\].*got " + str(array.dtype)):
        load_image(array)


@pytest.mark.parametrize("source", [None, 3, b"bytes", [1, 2]])
def test_objects_of_other_types_are_refused(source):
    with pytest.raises(ImageError, match=f"got {type(source).__name__}"):
        load_image(source)


def test_a_missing_file_a_folder_and_an_empty_file_are_refused(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png: there is no such file"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match=r"empty\.jpg is empty"):
        load_image(tmp_path / "empty.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path / "pipe.png")


def test_names_that_no_file_can_have_are_refused():
    with pytest.raises(ImageError, match="cannot be read: its name"):
        load_image("a\0b.png")
    with pytest.raises(ImageError, match="cannot be read: File name too long"):
        load_image("a" * 5000)


def test_a_file_without_read_permission_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path, PillowImage.fromarray(builders.pixels()), "secret.png")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(PillowImage, "open", refuse)
    with pytest.raises(ImageError, match=r"secret\.png: no permission"):
        load_image(path)


def test_text_is_not_an_image(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("no image")
    with pytest.raises(ImageError, match=r"notes\.jpg is not an image"):
        load_image(path)


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_refused_whatever_pillow_allows(tmp_path, monkeypatch, kind, lenient):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    whole = as_bytes(PillowImage.fromarray(builders.pixels((96, 128))), kind)
    path = tmp_path / "half.bin"
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError, match=r"half\.bin"):
            load_image(path)
    assert lenient == ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_truncated_progressive_jpeg_is_refused(tmp_path):
    whole = as_bytes(PillowImage.fromarray(builders.pixels((96, 128))), "JPEG", progressive=True)
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="truncated"):
        load_image(tmp_path / "half.jpg")


def test_an_image_over_the_pixel_limit_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path, PillowImage.fromarray(builders.pixels()), "a.png")
    monkeypatch.setattr(images, "PIXEL_LIMIT", 700)
    with pytest.raises(ImageError, match=r"a\.png is 32 x 24, over the limit of 700 pixels"):
        load_image(path)
    with pytest.raises(ImageError, match="limit of 700"):
        load_image(PillowImage.new("RGB", (32, 24)))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    header = bytearray(as_bytes(PillowImage.new("L", (32, 24)), "BMP"))
    for side, name in ((50_000, "bomb.bmp"), (13_350, "large.bmp")):  # Pillow refuses the first, we the second
        header[18:26] = np.array([side, side], "<i4").tobytes()
        (tmp_path / name).write_bytes(header)
        with pytest.raises(ImageError, match=f"{name}.*limit of {images.PIXEL_LIMIT:,} pixels"):
            load_image(tmp_path / name)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "ICO", "TIFF"])
@pytest.mark.parametrize("limit", [10, 500])  # over which Pillow refuses, and over which it warns
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_the_pixel_limit_of_pillow_has_no_effect(tmp_path, monkeypatch, kind, limit):
    path = saved(tmp_path, PillowImage.fromarray(builders.pixels()), f"a.{kind.lower()}")
    wanted = load_image(path).pixels
    monkeypatch.setattr(PillowImage, "MAX_IMAGE_PIXELS", limit)
    np.testing.assert_array_equal(load_image(path).pixels, wanted)
    np.testing.assert_array_equal(load_image(PillowImage.fromarray(wanted)).pixels, wanted)
    assert limit == PillowImage.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_read(tmp_path, caplog, kind):
    frames = [PillowImage.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / f"moving.{kind.lower()}"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], duration=50, **options)
    with caplog.at_level(logging.WARNING, "text2seg.io.images"):
        image = load_image(path)
    assert (image.pixels == (255, 0, 0)).all()
    assert "several frames" in caplog.text


def test_a_still_gif_is_not_called_animated(tmp_path, caplog):
    load_image(saved(tmp_path, PillowImage.new("P", (WIDTH, HEIGHT)), "still.gif"))
    assert not caplog.records


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(tmp_path, orientation, kind):
    exif = PillowImage.Exif()
    exif[images.EXIF_ORIENTATION] = orientation
    path = tmp_path / "a.bin"
    path.write_bytes(as_bytes(PillowImage.fromarray(builders.pixels()), kind, exif=exif))
    with PillowImage.open(path) as photo:
        upright = ImageOps.exif_transpose(photo).convert("RGB")
    image = load_image(path)
    np.testing.assert_array_equal(image.pixels, np.asarray(upright))
    assert image.hw == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))
    with PillowImage.open(path) as photo:
        np.testing.assert_array_equal(load_image(photo).pixels, image.pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_rotated_tiff_of_any_mode(tmp_path, orientation, mode, compression):
    """Pillow maps some of these files into memory and then swaps rows and columns."""
    image = PillowImage.fromarray(builders.pixels()).convert("L" if mode == "I;16" else mode)
    image = PillowImage.fromarray(np.asarray(image).astype(np.uint16) * 257) if mode == "I;16" else image
    path = tmp_path / "a.tif"
    image.save(path, tiffinfo={images.EXIF_ORIENTATION: orientation}, compression=compression)
    stored = load_image(image).pixels
    with PillowImage.open(path) as opened:
        before = load_image(opened).pixels
        again = load_image(opened).pixels
    for pixels in (load_image(path).pixels, before, again):
        np.testing.assert_array_equal(pixels, images._upright(stored, orientation))
    assert measure(path) == (pixels.shape[:2], orientation)


XMP = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{}"/>'


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
@pytest.mark.parametrize("where", ["exif", "xmp"])
def test_the_size_is_known_before_decoding(tmp_path, kind, orientation, where):
    exif, options = PillowImage.Exif(), {}
    exif[images.EXIF_ORIENTATION] = orientation
    text, path = XMP.format(orientation), tmp_path / "a.bin"
    if where == "exif":
        options["exif"] = exif
    elif kind == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", text)
    else:
        options |= {"tiffinfo": {700: text.encode()}} if kind == "TIFF" else {"xmp": text.encode()}
    if kind == "MPO":
        options |= {"save_all": True, "append_images": [PillowImage.new("RGB", (8, 8))]}
    PillowImage.fromarray(builders.pixels()).save(path, kind, **options)
    hw, found = measure(path)
    assert load_image(path).hw == hw
    if where == "exif" or kind in ("JPEG", "PNG"):
        assert hw == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))
        assert found == orientation


def test_an_image_is_read_only_from_its_open_file(tmp_path, monkeypatch):
    """Pillow would map the file with the name of the image."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_bytes(b"secret" * 1000)
    grey = ramp()
    photo = PillowImage.open(io.BytesIO(as_bytes(PillowImage.fromarray(grey), "TIFF")))
    photo.filename = "notes.txt"
    image = load_image(photo)
    np.testing.assert_array_equal(image.pixels[:, :, 0], grey)
    assert (image.file_name, photo.filename) == ("notes.txt", "notes.txt")


def test_orientation_6_rotates_clockwise():
    pixels = builders.pixels()
    image = PillowImage.fromarray(pixels)
    image.getexif()[images.EXIF_ORIENTATION] = 6
    np.testing.assert_array_equal(load_image(image).pixels, np.rot90(pixels, -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_image_with_a_damaged_exif_block_is_read(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(as_bytes(PillowImage.fromarray(builders.pixels()), "JPEG", exif=b"Exif\0\0MM\0*broken!"))
    assert load_image(path).hw == (HEIGHT, WIDTH)


def test_cmyk(tmp_path):
    colours = PillowImage.new("RGB", (WIDTH, HEIGHT), (250, 10, 20))
    image = load_image(saved(tmp_path, colours.convert("CMYK"), "a.jpg", quality=100, subsampling=0))
    assert np.abs(image.pixels.astype(int) - (250, 10, 20)).max() < 6


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_is_scaled_and_not_clipped(tmp_path, name):
    values = ramp(np.uint16, 65535)
    image = load_image(saved(tmp_path, PillowImage.fromarray(values), name))
    np.testing.assert_array_equal(image.pixels[..., 0], np.rint(values / 257))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (ramp(np.int32), ramp()),
        (ramp(np.int32, 65535), np.rint(ramp(np.int32, 65535) / 257)),
        (ramp(np.int32, 1_000_000), np.rint(ramp(np.int32, 1_000_000) * 255 / 1_000_000)),
        (ramp(np.int32) - 100, ramp()),
        (ramp(np.float32) / 255, ramp()),
        (ramp(np.float32), np.rint(ramp(np.float32))),
        (np.full((4, 6), -2.0, np.float32), np.zeros((4, 6))),
    ],
)
def test_integer_and_float_images_are_scaled(values, expected):
    image = load_image(PillowImage.fromarray(values))
    assert np.abs(image.pixels[..., 1] - expected.astype(float)).max() <= 1


def test_transparency_becomes_white(tmp_path):
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    pixels[:, :8] = (200, 100, 0, 255)
    pixels[:, 8:16] = (200, 100, 0, 51)
    image = load_image(saved(tmp_path, PillowImage.fromarray(pixels), "a.png"))
    assert image.pixels[0, 0].tolist() == [200, 100, 0]
    assert image.pixels[0, 10].tolist() == [244, 224, 204]
    assert image.pixels[0, 31].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_every_mode_of_pillow(mode):
    black = PillowImage.new("RGB", (WIDTH, HEIGHT), "black").convert(
        {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, mode)
    )
    image = load_image(black.convert(mode))
    assert image.pixels.max() < 3


def test_a_palette_with_transparency(tmp_path):
    photo = PillowImage.new("P", (WIDTH, HEIGHT), 1)
    photo.putpalette([255, 0, 0, 0, 0, 255])
    photo.paste(0, (0, 0, 8, HEIGHT))
    for name in ("a.png", "a.gif"):
        image = load_image(saved(tmp_path, photo, name, transparency=0))
        assert image.pixels[5, 3].tolist() == [255, 255, 255]
        assert image.pixels[5, 20].tolist() == [0, 0, 255]


def test_grey_with_a_transparent_shade(tmp_path):
    photo = PillowImage.new("L", (WIDTH, HEIGHT), 7)
    photo.paste(90, (0, 0, 8, HEIGHT))
    image = load_image(saved(tmp_path, photo, "a.png", transparency=90))
    assert image.pixels[0, 0, 0] == 255
    assert image.pixels[0, 20, 0] == 7


def test_one_pixel(tmp_path):
    image = load_image(saved(tmp_path, PillowImage.new("RGB", (1, 1), (1, 2, 3)), "a.png"))
    assert image.pixels.tolist() == [[[1, 2, 3]]]


def test_postscript_is_refused(tmp_path):
    path = saved(tmp_path, PillowImage.new("RGB", (WIDTH, HEIGHT)), "a.eps")
    with pytest.raises(ImageError, match="PostScript"):
        load_image(path)


def test_an_empty_and_a_closed_pillow_image_are_refused(tmp_path):
    with pytest.raises(ImageError, match="is empty"):
        load_image(PillowImage.new("RGB", (0, 5)))
    with PillowImage.open(saved(tmp_path, PillowImage.new("RGB", (WIDTH, HEIGHT)), "a.png")) as image:
        pass
    with pytest.raises(ImageError, match=r"^a\.png cannot be decoded"):
        load_image(image)
