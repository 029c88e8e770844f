"""Formats that Pillow does not read, or not whole: TIFF, DICOM, HEIC, JPEG XL, NumPy files, PNG of 16 bits per colour.

Each module imports its library when it is called, and gives the values of a file as `Samples`. Not here: which format a
file is (`common/images/formats.py`), and what becomes of its values (`common/images/decode.py`).
"""
