"""Images of more than 8 bits are scaled correctly in every file format, and a chosen range is logged."""

from __future__ import annotations

import io
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image as PillowImage

from text2seg.app.checks import read_image
from text2seg.app.settings import AppSettings
from text2seg.errors import ImageError
from text2seg.io.images import load_image, open_image

RGB = np.random.default_rng(3).integers(0, 256, (24, 32, 3)).astype(np.uint8)
RGB[0, :2] = ((0, 0, 0), (255, 255, 255))
GREY = RGB[:, :, :1].copy()
KINDS = {"u": 1, "i": 2, "f": 3, "c": 6}


def tiff(
    array: np.ndarray, tags: dict[int, tuple] | None = None, *, order: str = "<", data: bytes | None = None
) -> bytes:
    """Return an uncompressed TIFF of [H, W, C]. `tags`: number → integers, floats or bytes of text; `data` replaces
    the bytes of the array."""
    height, width, count = array.shape
    data = np.ascontiguousarray(array.astype(array.dtype.newbyteorder(order))).tobytes() if data is None else data
    entries: dict[int, tuple | bytes] = {256: (width,), 257: (height,), 258: (array.itemsize * 8,) * count, 259: (1,)}
    entries |= {262: (2 if count >= 3 else 1,), 273: (8,), 277: (count,), 278: (height,), 279: (len(data),)}
    entries |= {284: (1,), 339: (KINDS[array.dtype.kind],) * count, **(tags or {})}
    start, extra, table = 8 + len(data) + len(data) % 2, b"", b""
    beyond = start + 2 + 12 * len(entries) + 4
    for tag, values in sorted(entries.items()):
        if isinstance(values, bytes):
            kind, number, raw = 2, len(values), values
        elif isinstance(values[0], float):
            kind, number, raw = 12, len(values), struct.pack(f"{order}{len(values)}d", *values)
        else:
            kind, number, raw = 4, len(values), struct.pack(f"{order}{len(values)}I", *values)
        if len(raw) > 4:
            raw, extra = struct.pack(f"{order}I", beyond + len(extra)), extra + raw + bytes(len(raw) % 2)
        table += struct.pack(f"{order}HHI", tag, kind, number) + raw.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    whole = [magic, struct.pack(f"{order}I", start), data, bytes(len(data) % 2)]
    return b"".join([*whole, struct.pack(f"{order}H", len(entries)), table, bytes(4), extra])


def png(array: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a 16-bit PNG of [H, W, C]."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, count = array.shape
    rows = array.astype(">u2").reshape(height, -1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[count], 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(*each) for each in chunks)]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")])


def ppm(array: np.ndarray, most: int) -> bytes:
    height, width, count = array.shape
    return b"P%d\n%d %d\n%d\n" % (5 if count == 1 else 6, width, height, most) + array.astype(">u2").tobytes()


@pytest.fixture
def load(tmp_path):
    def decode(content: bytes, name: str = "deep.tif") -> np.ndarray:
        (tmp_path / name).write_bytes(content)
        return load_image(tmp_path / name).pixels

    return decode


def is_scene(pixels: np.ndarray, scene: np.ndarray, most: int = 1) -> bool:
    return bool(np.abs(pixels.astype(int) - np.broadcast_to(scene, RGB.shape)).max() <= most)


@pytest.mark.parametrize("scene", [GREY, RGB], ids=["grey", "rgb"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "factor", "shift"),
    [
        ("u2", 257, 0),
        ("u2", 64, 0),
        ("u2", 16, 0),
        ("u2", 8, 0),
        ("u2", 4, 0),
        ("u2", 1, 0),
        ("u4", 16_777_216, 0),
        ("u4", 257, 0),
        ("u4", 1, 0),
        ("u8", 16, 0),
        ("i1", 1, -128),
        ("i2", 128, 0),
        ("i2", 200, -25_600),
        ("i4", 1000, -128_000),
        ("f2", 1 / 255, 0),
        ("f2", 1, 0),
        ("f4", 1 / 255, 0),
        ("f4", 1, 0),
        ("f4", 257, 0),
        ("f4", 0.01, -1),
        ("f8", 1 / 255, 0),
        ("f8", 16, 0),
    ],
)
def test_every_sample_type_is_scaled_to_the_scene(load, scene, order, kind, factor, shift):
    values = (scene.astype(np.float64) * factor + shift).astype(kind)
    assert is_scene(load(tiff(values, order=order)), scene)


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
@pytest.mark.parametrize("scene", [GREY, RGB], ids=["grey", "rgb"])
def test_packed_bits_declare_their_range(load, caplog, bits, scene):
    dark = scene.astype(np.uint16) << (bits - 8) >> 2
    ones = (dark.reshape(len(dark), -1, 1) >> np.arange(bits)[::-1]) & 1
    data = np.packbits(ones.reshape(len(dark), -1).astype(np.uint8), axis=1).tobytes()
    pixels = load(tiff(dark, {258: (bits,) * dark.shape[2]}, data=data))
    assert is_scene(pixels, scene / 4)  # dark it is, and dark it stays
    assert not caplog.records


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_files(load, compression):
    values = RGB[:, :, 0].astype(np.uint16) * 16
    stream = io.BytesIO()
    PillowImage.fromarray(values).save(stream, "TIFF", compression=compression)
    assert is_scene(load(stream.getvalue()), GREY)


def test_tiff_predictors_2_and_3_are_decoded(load):
    """Predictors 2 and 3, as GDAL writes them."""
    values = RGB.astype(np.uint16) * 16
    steps = np.diff(values, axis=1, prepend=np.zeros_like(values[:, :1]))
    data = zlib.compress(steps.astype("<u2").tobytes())
    assert is_scene(load(tiff(values, {259: (8,), 317: (2,)}, data=data)), RGB)
    fractions = (RGB / 255).astype(np.float32)
    parts = fractions.astype(">f4").view(np.uint8).reshape(24, 96, 4).swapaxes(1, 2).reshape(24, -1, 3)
    data = zlib.compress(np.diff(parts, axis=1, prepend=np.zeros_like(parts[:, :1])).tobytes())
    assert is_scene(load(tiff(fractions, {259: (8,), 317: (3,)}, data=data)), RGB)


def test_tiles_and_planes(load):
    values = RGB.astype(np.uint16) * 16
    padded = np.pad(values, ((0, 8), (0, 0), (0, 0)))
    tiles = [padded[y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16)]
    places = tuple(8 + 1536 * n for n in range(4))
    tags = {322: (16,), 323: (16,), 324: places, 325: (1536,) * 4}
    data = b"".join(tile.tobytes() for tile in tiles)
    assert is_scene(load(tiff(values, tags, data=data)), RGB)
    tags = {284: (2,), 273: tuple(8 + 1536 * n for n in range(3)), 279: (1536,) * 3}
    assert is_scene(load(tiff(values, tags, data=np.moveaxis(values, 2, 0).tobytes())), RGB)


def test_a_chosen_range_is_logged_once_and_a_declared_one_is_not_logged(load, caplog):
    load(tiff(GREY.astype(np.uint16) * 16))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith("deep.tif: its values lie in 0..4080; 0 is taken as black, 4095 as white")
    caplog.clear()
    load(tiff(GREY.astype(np.uint16) * 257))
    load(tiff(GREY.astype(np.float32) / 255))
    load(tiff(GREY.astype(np.uint16) * 16, {280: (0,), 281: (4095,)}))
    load(tiff(GREY))
    assert not caplog.records


def test_dark_images_of_8_bits_are_never_stretched(load):
    for dark in (GREY // 9, RGB // 9):
        assert is_scene(load(tiff(dark)), dark, 0)
        assert is_scene(load(tiff(dark.astype(np.uint16))), dark, 0)
        assert is_scene(load(tiff(dark.astype(np.float32))), dark, 0)
        assert is_scene(load(tiff(dark.astype(np.uint32))), dark, 0)


@pytest.mark.parametrize("tags", [{280: (0,), 281: (1023,)}, {340: (0.0,), 341: (1023.0,)}])
def test_a_declared_range_is_used_unless_values_exceed_it(load, tags):
    assert is_scene(load(tiff((RGB // 4).astype(np.uint16) * 4, tags)), RGB // 4)
    assert is_scene(load(tiff(RGB.astype(np.uint16) * 16, tags)), RGB)


def test_inverted_files_are_read_with_low_values_as_white(load):
    assert is_scene(load(tiff(4095 - GREY.astype(np.uint16) * 16, {262: (0,)})), GREY)
    assert is_scene(load(tiff(1 - GREY.astype(np.float32) / 255, {262: (0,)})), GREY)


HOLE = np.zeros((24, 32), bool)
HOLE[:10, 5:25] = True


@pytest.mark.parametrize("scene", [GREY, RGB], ids=["grey", "rgb"])
@pytest.mark.parametrize(
    ("kind", "factor", "value"),
    [
        ("f4", 1, -9999),
        ("f4", 1 / 255, -9999),
        ("f4", 1, float(np.finfo("f4").max)),
        ("f4", 1 / 255, float(np.finfo("f4").min)),
        ("f8", 16, -1e30),
        ("f4", 1 / 255, np.nan),
        ("f2", 1 / 255, np.inf),
        ("u2", 16, 65535),
        ("i2", 16, -32768),
        ("i4", 16, -2147483648),
        ("u4", 8, 4294967295),
    ],
)
@pytest.mark.parametrize("declared", [False, True])
def test_no_data_values_do_not_affect_the_range(load, caplog, scene, kind, factor, value, declared):
    values = (scene.astype(np.float64) * factor).astype(kind)
    values[HOLE] = value
    pixels = load(tiff(values, {42113: f"{value}".encode() + b"\0"} if declared else None))
    np.testing.assert_allclose(pixels[~HOLE], np.broadcast_to(scene, RGB.shape)[~HOLE], atol=1)
    assert len(np.unique(pixels[HOLE])) == 1
    assert caplog.records or np.isinf(value)
    if declared and np.isfinite(value):
        assert "pixels without a value (200) become black" in caplog.text
        assert not pixels[HOLE].any()


LARGE = np.tile(RGB, (3, 3, 1))


@pytest.mark.parametrize("odd", [1.004, 1.2, -0.01, 4.5, 300.0, 1e6])
def test_a_few_extreme_values_do_not_darken_the_image(load, odd):
    values = (LARGE / 255).astype(np.float32)
    values[3, 4:30] = odd
    pixels = load(tiff(values))
    np.testing.assert_allclose(pixels[4:], LARGE[4:], atol=1)
    assert (pixels[3, 4:30] == (255 if odd > 1 else 0)).all()


def test_dead_pixels_do_not_darken_the_image(load):
    deep = LARGE.astype(np.uint16) * 16
    deep[3, 4] = 65535
    deep[9, 9] = 60000
    np.testing.assert_allclose(load(tiff(deep))[10:], LARGE[10:], atol=1)


def test_small_bright_objects_stay_bright_on_a_dark_background(load):
    """Cells under a microscope: 12 bits, noise below, a hundredth of the area bright."""
    noise = np.random.default_rng(0).integers(90, 130, (100, 100, 1)).astype(np.uint16)
    noise[40:50, 40:50] = np.arange(2000, 3000, 10).reshape(10, 10, 1)
    pixels = load(tiff(noise))
    assert pixels[:40].max() < 12
    assert pixels[40:50, 40:50].min() > 100
    assert len(np.unique(pixels[40:50, 40:50])) > 50


def test_transparent_pixels_do_not_affect_the_range(load):
    values = np.dstack([RGB.astype(np.uint16) * 16, np.full((24, 32), 65535, np.uint16)])
    values[:, :8] = (65535, 65535, 65535, 0)
    np.testing.assert_allclose(load(tiff(values, {338: (2,)}))[:, 8:], RGB[:, 8:], atol=1)
    values[:, :, 3] = 0
    assert (load(tiff(values, {338: (2,)})) == 255).all()


def test_constant_images_have_one_value(load):
    for value in (0, 7, 1000, 65535):
        assert len(np.unique(load(tiff(np.full((24, 32, 1), value, np.uint16))))) == 1
    assert load(tiff(np.full((24, 32, 1), 0.5, np.float32)))[0, 0, 0] == 128
    with pytest.raises(ImageError, match=r"deep\.tif has no pixel with a value"):
        load(tiff(np.full((24, 32, 1), np.nan, np.float32)))


def test_transparency(load):
    alpha = np.full((24, 32, 1), 65535, np.uint16)
    alpha[:, :8] = 0
    white = RGB.copy()
    white[:, :8] = 255
    for most in (65535, 4095):
        values = np.dstack([RGB.astype(np.uint16) * 16, np.minimum(alpha, most)])
        assert is_scene(load(tiff(values, {338: (2,)})), white)
    premultiplied = np.dstack([RGB.astype(np.uint16) * 257 * (alpha > 0), alpha])
    assert is_scene(load(tiff(premultiplied, {338: (1,)})), white)
    assert is_scene(load(png(np.dstack([RGB.astype(np.uint16) * 16, alpha])), "a.png"), white)
    grey = np.where(alpha > 0, GREY, 255)
    assert is_scene(load(tiff(np.dstack([GREY.astype(np.uint16) * 16, alpha]), {338: (2,)})), grey)
    assert is_scene(load(png(np.dstack([GREY.astype(np.uint16) * 16, alpha])), "a.png"), grey)


def test_extra_channels_are_left_out(load, caplog):
    more = np.dstack([RGB, RGB]).astype(np.uint16) * 16
    assert is_scene(load(tiff(more[:, :, :4], {338: (0,)})), RGB)
    assert "are left out (1 of 4)" in caplog.text
    caplog.clear()
    assert is_scene(load(tiff(more[:, :, :3], {262: (1,), 338: (0, 0)})), RGB)
    assert "taken as red, green and blue" in caplog.text
    for count, kind in ((2, np.uint8), (4, np.uint16), (6, np.uint8)):
        with pytest.raises(ImageError, match=rf"deep\.tif has {count} channels and does not say which are red"):
            load(tiff(more[:, :, :count].astype(kind), {262: (1,), 338: (0,) * (count - 1)}))


def test_palettes(load):
    table = np.arange(256, dtype=np.uint16)
    steep = np.concatenate([255 - table, table, table])
    expected = np.dstack([255 - GREY, GREY, GREY])
    for colours in (steep * 257, steep):  # of 16 bits, as the standard has it, and of 8, as some programs write them
        assert is_scene(load(tiff(GREY, {262: (3,), 320: tuple(colours.tolist())})), expected)
    deep = np.concatenate([np.arange(65536)] * 3)
    assert is_scene(load(tiff(GREY.astype(np.uint16) * 257, {262: (3,), 320: tuple(deep.tolist())})), GREY)


def test_cmyk_and_lab(load):
    inks = np.asarray(PillowImage.fromarray(RGB).convert("CMYK"))
    assert is_scene(load(tiff(inks.astype(np.uint16) * 257, {262: (5,)})), RGB)
    lab = PillowImage.new("LAB", (32, 24), (128, 128, 128))  # L 50, grey
    stream = io.BytesIO()
    lab.save(stream, "TIFF")
    assert is_scene(load(stream.getvalue()), np.full((24, 32, 1), 119, np.uint8), 2)
    with pytest.raises(ImageError, match=r"deep\.tif is a TIFF of a kind that cannot be read here; save it as"):
        load(tiff(RGB.astype(np.uint16), {262: (8,)}))


def test_ycbcr(load):
    values = np.asarray(PillowImage.fromarray(RGB).convert("YCbCr"))
    assert is_scene(load(tiff(values, {262: (6,), 530: (1, 1)})), RGB, 3)
    with pytest.raises(ImageError, match=r"deep\.tif is a TIFF of YCbCr colours that cannot be read here"):
        load(tiff(values, {262: (6,), 530: (2, 2)}))


def test_sgi_of_16_bits(load):
    for scale in (257, 16):
        planes = np.moveaxis(RGB[::-1].astype(">u2") * scale, 2, 0)
        header = struct.pack(">hBBHHHH", 474, 0, 2, 3, 32, 24, 3).ljust(512, b"\0")
        content = header + planes.astype(">u2").tobytes()
        if scale == 257:
            assert is_scene(load(content, "a.sgi"), RGB)
        else:
            with pytest.raises(ImageError, match=r"a\.sgi: it uses only the lower of its 16 bits"):
                load(content, "a.sgi")


def test_png_of_16_bits(load, caplog):
    for scene in (GREY, RGB):
        assert is_scene(load(png(scene.astype(np.uint16) * 257), "a.png"), scene)
        assert not caplog.records
        assert is_scene(load(png(scene.astype(np.uint16) * 16), "a.png"), scene)
        assert "4095 as white" in caplog.text
        caplog.clear()
        bits = (b"sBIT", bytes([12] * scene.shape[2]))
        assert is_scene(load(png((scene // 4).astype(np.uint16) * 16, bits), "a.png"), scene // 4)
        assert is_scene(load(png((scene // 4).astype(np.uint16) * 257, bits), "a.png"), scene // 4)
        assert not caplog.records


def test_a_png_with_a_transparent_colour(load):
    values = RGB.astype(np.uint16) * 257
    values[:, :8] = (514, 1028, 7)
    pixels = load(png(values, (b"tRNS", struct.pack(">HHH", 514, 1028, 7))), "a.png")
    assert (pixels[:, :8] == 255).all()
    np.testing.assert_array_equal(pixels[:, 8:], RGB[:, 8:])


@pytest.mark.parametrize("most", [1000, 1023, 4095, 65535])
def test_ppm_and_pgm(load, caplog, most):
    for scene in (GREY, RGB):
        assert is_scene(load(ppm(np.rint(scene / 255 * most), most), "a.ppm"), scene)
        plain = " ".join(str(round(value / 255 * most)) for value in scene.ravel().tolist())
        magic = "P2" if scene.shape[2] == 1 else "P3"
        assert is_scene(load(f"{magic}\n# by hand\n32 24\n{most}\n{plain}\n".encode(), "a.ppm"), scene)
        if most < 65535:
            assert is_scene(load(ppm(np.rint(scene / 1020 * most), most), "a.ppm"), scene / 4)
    assert not caplog.records
    assert is_scene(load(ppm(RGB.astype(np.uint16) * 16, 65535), "a.ppm"), RGB)
    assert "4095 as white" in caplog.text


def test_jpeg_2000(load):
    stream = io.BytesIO()
    PillowImage.fromarray(GREY[:, :, 0].astype(np.uint16) * 16).save(stream, "JPEG2000", irreversible=False)
    assert is_scene(load(stream.getvalue(), "a.jp2"), GREY)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_truncated_files(load, share):
    for content, name in (
        (tiff(RGB.astype(np.uint16)), "a.tif"),
        (tiff(RGB.astype(np.float32), {259: (8,)}, data=zlib.compress(RGB.astype("<f4").tobytes())), "a.tif"),
        (png(RGB.astype(np.uint16)), "a.png"),
        (ppm(RGB, 65535), "a.ppm"),
    ):
        with pytest.raises(ImageError, match=r"a\.\w+ "):
            load(content[: int(len(content) * share)], name)


def test_missing_strips_and_huge_sizes_are_refused(load):
    for tags, words in (
        ({278: (8,)}, "lacks parts"),
        ({256: (2**31,), 257: (2**31,)}, "over the limit"),
        ({256: (0,)}, "damaged"),
        ({322: (2**20,), 323: (2**20,), 324: (8,), 325: (9,)}, "tiles far larger"),
        ({277: (60_000,), 258: (16,), 339: (1,), 256: (3000,), 257: (3000,)}, "holds over"),
        ({258: (16, 16, 8)}, "of a kind"),
        ({259: (34712,)}, "TIFF's number 34712"),
        ({262: (32803,)}, "raw file"),
    ):
        with pytest.raises(ImageError, match=rf"deep\.tif.*{words}"):
            load(tiff(RGB.astype(np.uint16), tags))


def test_paths_bytes_and_pillow_images_are_scaled_alike(tmp_path):
    content = tiff((RGB / 255).astype(np.float16))
    path = tmp_path / "half.tif"
    path.write_bytes(content)
    wanted = load_image(path).pixels
    assert is_scene(wanted, RGB)
    np.testing.assert_array_equal(read_image(content, AppSettings(), name="half.tif").pixels, wanted)
    np.testing.assert_array_equal(read_image(path, AppSettings()).pixels, wanted)
    with open_image(path, "half.tif") as image:
        assert image.size == (32, 24)
        np.testing.assert_array_equal(load_image(image).pixels, wanted)


def test_an_opened_pillow_image_is_read_from_its_file(tmp_path):
    path = tmp_path / "deep.tif"
    path.write_bytes(tiff(RGB.astype(np.uint16) * 8))
    with PillowImage.open(path) as image:
        assert is_scene(load_image(image).pixels, RGB)
    with PillowImage.open(path) as image:
        image.load()  # Pillow has dropped what counts
        with pytest.raises(
            ImageError, match=r"deep\.tif: Pillow kept only the upper 8 bits of its samples; give the path"
        ):
            load_image(image)
    path.write_bytes(tiff(GREY.astype(np.uint32) * 16_777_216))
    with PillowImage.open(path) as image:
        image.load()  # as signed integers
        assert is_scene(load_image(image).pixels, GREY)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_deep_files_are_turned_upright(load, orientation):
    turns = {1: 0, 3: 2, 6: -1, 8: 1}[orientation]
    expected = np.rot90(RGB, turns)
    for values in (RGB.astype(np.uint16) * 16, RGB.astype(np.float16)):
        np.testing.assert_allclose(load(tiff(values, {274: (orientation,)})), expected, atol=1)


@pytest.mark.parametrize(
    ("start", "words"),
    [(b"\x76\x2f\x31\x01", "an OpenEXR"), (bytes(128) + b"DICM", "a DICOM"), (b"#?RADIANCE\n", "a Radiance HDR")],
)
def test_unsupported_formats_are_named(load, start, words):
    with pytest.raises(
        ImageError, match=rf"a\.bin is {words} image, which cannot be read here; save it as PNG or JPEG"
    ):
        load(start + bytes(300), "a.bin")
