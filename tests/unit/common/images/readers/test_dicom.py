import io
import logging
import warnings

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, pixel_array

from beit.common.errors import BadSample
from beit.common.images.decoding import Decoding
from beit.common.images.formats import format_of
from beit.common.images.readers.dicom import num_frames, read, size, without_patient
from beit.tests.science_files import dicom, lossless_jpeg_dicom, noise

USUAL = Decoding()
READABLE = [  # by pydicom, with the decoders of dev; each in its package
    *("693_J2KI", "CT_small", "ExplVR_BigEnd", "GDCMJ2K_TextGBR", "J2K_pixelrep_mismatch", "JPEG2000", "MR_small"),
    *("MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless", "MR_small_padded"),
    *("SC_jpeg_no_color_transform", "SC_rgb_dcmtk_+eb+cr", "SC_rgb_dcmtk_+eb+cy+np", "SC_rgb_dcmtk_+eb+cy+s4"),
    *("SC_rgb_gdcm_KY", "SC_rgb_jpeg_app14_dcmd", "SC_rgb_jpeg_lossy_gdcm", "SC_rgb_rle_16bit_2frame"),
    *("SC_rgb_rle_32bit", "SC_rgb_small_odd", "SC_rgb_small_odd_jpeg", "SC_ybr_full_422_uncompressed"),
    *("examples_jpeg2k", "examples_overlay", "examples_rgb_color", "image_dfl", "rtdose", "rtdose_rle"),
]


def path_of(name):
    return get_testdata_file(f"{name}.dcm", download=False)


def data_of(name):
    with open(path_of(name), "rb") as file:
        return file.read()


@pytest.mark.parametrize("name", READABLE)
def test_values_are_those_of_pydicom(name):
    data, dataset = data_of(name), pydicom.dcmread(path_of(name))
    assert format_of(data).name == "DICOM"
    count = int(dataset.get("NumberOfFrames", 1))
    assert num_frames(data) == count and size(data) == (dataset.Columns, dataset.Rows)
    for frame in {0, count // 2, count - 1}:
        found, expected = read(data, Decoding(frame=frame)), pixel_array(dataset, index=frame)
        if expected.ndim == 2:
            expected = apply_modality_lut(expected, dataset)
        assert found.num_frames == count and found.kind == ("rgb" if expected.ndim == 3 else "grey")
        assert np.array_equal(found.array.reshape(expected.shape), expected)
        low, high = found.full_range
        assert low <= found.array.min() and found.array.max() <= high


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless", "MR_small_jp2klossless", "MR_small_RLE"])
def test_what_is_compressed_without_loss_is_the_same_picture(name):
    assert np.array_equal(read(data_of(name), USUAL).array, read(data_of("MR_small"), USUAL).array)


def test_lossless_jpeg_as_scanners_write_it():
    found = read(lossless_jpeg_dicom(), USUAL)
    assert np.array_equal(found.array, read(dicom(), USUAL).array)
    assert read(data_of("SC_rgb_jpeg_gdcm"), USUAL).kind == "rgb"
    assert np.array_equal(read(data_of("SC_rgb_jpeg_gdcm"), USUAL).array, read(data_of("SC_rgb_rle"), USUAL).array)


def test_jpeg_of_12_bits_is_near_what_was_encoded():
    rows, columns = np.mgrid[:64, :64]
    values = ((rows + columns) * 30).astype(np.uint16)

    def compress(dataset):
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGExtended12Bit
        dataset.PixelData = encapsulate([imagecodecs.jpeg8_encode(values, 95, bitspersample=12)])
        dataset["PixelData"].VR, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = "OB", 12, 11, 0

    found = read(dicom(compress), USUAL)
    assert found.bits == 12 and np.abs(found.array[..., 0].astype(int) - values).max() <= 12


def test_signs_are_taken_from_the_bits_that_are_used():
    values = (noise((64, 64)) & 0xFFF).astype(np.uint16)

    def compress(dataset):
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
        dataset.PixelData = encapsulate([imagecodecs.jpegls_encode(values)])
        dataset["PixelData"].VR, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = "OB", 12, 11, 1

    found = read(dicom(compress), USUAL)
    assert np.array_equal(found.array[..., 0], np.where(values > 2047, values.astype(int) - 4096, values))
    assert found.full_range == (-2048, 2047)


def test_palette_colours_are_8_bits_with_white_at_255():
    found, dataset = read(data_of("examples_palette"), USUAL), pydicom.dcmread(path_of("examples_palette"))
    tables = [
        np.frombuffer(dataset[f"{c}PaletteColorLookupTableData"].value, np.uint16) for c in ("Red", "Green", "Blue")
    ]
    expected = np.stack([table[dataset.pixel_array] >> 8 for table in tables], axis=-1)
    assert found.array.dtype == np.uint8 and np.array_equal(found.array, expected)


def test_rescaling_gives_the_unit_and_its_limits():
    def rescale(slope, intercept):
        def change(dataset):
            dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
            dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0

        return read(dicom(change), USUAL)

    stored = pydicom.dcmread(path_of("MR_small")).pixel_array
    found = rescale(1, -1024)
    assert np.array_equal(found.array[..., 0], stored.astype(int) - 1024) and found.full_range == (-1024, 3071)
    found = rescale("0.5", 10)
    assert np.allclose(found.array[..., 0], stored * 0.5 + 10) and found.full_range == (10, 2057.5)
    assert rescale(-2, 0).full_range == (-8190, 0)
    with pytest.raises(BadSample, match="it rescales all values to one"):
        rescale(0, 5)


@pytest.mark.parametrize(
    ("function", "expected"), [("", (0, 99)), ("LINEAR", (0, 99)), ("LINEAR_EXACT", (0, 100)), ("SIGMOID", (0, 100))]
)
def test_the_first_window_is_that_of_the_standard(function, expected):
    def change(dataset):
        dataset.WindowCenter, dataset.WindowWidth = [50, 7], [100, 3]
        if function:
            dataset.VOILUTFunction = function

    assert read(dicom(change), USUAL).window == expected


def test_a_file_of_many_frames_may_say_it_for_each():
    def change(dataset):
        groups = []
        for frame in range(2):
            window, unit, group = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
            window.WindowCenter, window.WindowWidth = 100 * frame + 50.5, 101
            unit.RescaleSlope, unit.RescaleIntercept = 1, 1000 * frame
            group.FrameVOILUTSequence, group.PixelValueTransformationSequence = [window], [unit]
            groups.append(group)
        dataset.PerFrameFunctionalGroupsSequence, dataset.NumberOfFrames = groups, 2
        dataset.PixelData = dataset.PixelData * 2

    first, second = (read(dicom(change), Decoding(frame=frame)) for frame in (0, 1))
    assert (first.window, second.window) == ((0, 100), (100, 200))
    assert np.array_equal(first.array + 1000, second.array)


def test_monochrome1_is_inverted():
    assert read(dicom(lambda dataset: setattr(dataset, "PhotometricInterpretation", "MONOCHROME1")), USUAL).is_inverted
    assert not read(dicom(), USUAL).is_inverted


def test_a_data_set_without_preamble_is_known_by_its_first_elements():
    data = data_of("MR_small")
    start = 144 + int.from_bytes(data[140:144], "little")  # behind group 2
    assert format_of(data[132:]).name == format_of(data[start:]).name == "DICOM"
    assert np.array_equal(read(data[start:], USUAL).array, read(data, USUAL).array)


def test_a_preamble_may_be_the_head_of_a_tiff():
    assert data_of("CT_small").startswith(b"II*\0") and format_of(data_of("CT_small")).name == "DICOM"


@pytest.mark.parametrize("name", ["rtplan", "test-SR", "waveform_ecg", "reportsi"])
def test_a_file_without_pixels_is_said_to_be_one(name):
    with pytest.raises(BadSample, match="unsupported: a DICOM file without pixels, such as a report, a plan"):
        read(data_of(name), USUAL)


@pytest.mark.parametrize("name", ["MR_small", "JPEG2000", "SC_rgb_jpeg_gdcm", "MR_small_RLE", "JPGExtended"])
def test_a_cut_file_is_never_filled_up(name):
    data = data_of(name)
    with pytest.raises(BadSample, match="truncated"):
        read(data[: len(data) - 200], USUAL)


def test_bombs_are_refused_by_their_headers():
    with pytest.raises(BadSample, match="truncated: DICOM: 8192 bytes of pixels, 100000000 are needed by its header"):
        read(dicom(lambda d: (setattr(d, "Rows", 5000), setattr(d, "Columns", 10000))), USUAL)
    with pytest.raises(BadSample, match="bomb: 60000 x 60000 px"):
        read(dicom(lambda d: (setattr(d, "Rows", 60000), setattr(d, "Columns", 60000))), USUAL)
    data = data_of("JPEG2000")
    start = data.index(b"\xff\x4f\xff\x51") + 8
    huge = data[:start] + b"\x00\x10\x00\x00\x00\x10\x00\x00" + data[start + 8 :]
    with pytest.raises(
        BadSample, match="bomb: a picture of 1048576 x 1048576 px inside, in the place of 256 x 1024 px"
    ):
        read(huge, USUAL)


def test_nothing_of_a_patient_gets_into_messages(caplog, capfd):
    secret = "Doe^Jane"
    caplog.set_level(logging.DEBUG)

    def spoil(dataset):
        dataset.PatientName = dataset.PatientID = secret
        dataset.PatientBirthDate = "19700101"

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\b")  # as in the module
        data, errors = dicom(spoil), []
        for damage in range(0, len(data), 17):
            damaged = bytearray(data)
            damaged[damage] ^= 0x41
            try:
                read(bytes(damaged), USUAL)
            except BadSample as error:
                errors.append(str(error))
    shown = [*errors, caplog.text, *capfd.readouterr(), *(str(warning.message) for warning in caught)]
    assert len(set(errors)) > 1 and not any(word in text for text in shown for word in ("Doe", "Jane", "19700101"))


@pytest.mark.parametrize("name", ["CT_small", "MR_small_RLE", "JPEG2000", "examples_palette", "image_dfl"])
def test_what_a_store_keeps_shows_the_same_and_tells_of_nobody(name):
    data = data_of(name)
    kept = without_patient(data)
    assert {tag.group for tag in pydicom.dcmread(io.BytesIO(kept)).keys()} <= {0x0028, 0x5200, 0x7FE0}  # noqa: SIM118
    before, after = read(data, USUAL), read(kept, USUAL)
    assert np.array_equal(before.array, after.array) and before.full_range == after.full_range
    assert (before.window, before.is_inverted, before.num_frames) == (after.window, after.is_inverted, after.num_frames)
    assert format_of(kept).name == "DICOM" and without_patient(kept) == kept


def test_units_and_windows_of_frames_are_kept_and_nothing_beside_them():
    def change(dataset):
        unit, group, window = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        unit.RescaleSlope, unit.RescaleIntercept, window.WindowCenter, window.WindowWidth = 2, 5, 50.5, 101
        group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [unit], [window]
        group.FrameContentSequence = [pydicom.Dataset()]
        group.FrameContentSequence[0].FrameComments = "Jane"
        dataset.SharedFunctionalGroupsSequence = [group]

    data = dicom(change)
    kept = without_patient(data)
    assert read(kept, USUAL).window == (0, 100) and np.array_equal(read(kept, USUAL).array, read(data, USUAL).array)
    assert b"Jane" in data and b"Jane" not in kept


@pytest.mark.parametrize(("tag", "value"), [("Modality", "SEG"), ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.66.4")])
def test_segmentations_are_no_pictures(tag, value):
    data = dicom(lambda dataset: setattr(dataset, tag, value))
    for call in (lambda: read(data, Decoding()), lambda: without_patient(data), lambda: size(data)):
        with pytest.raises(BadSample, match="a DICOM segmentation, which is a mask of other images"):
            call()
