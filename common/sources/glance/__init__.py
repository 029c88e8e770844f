"""A few images of a source, from all over it, and their headers: what is said of them before anything is made of them.

Here: choosing and reading them, and two warnings, of colours that transparency hides and of masks among pictures. Not
here: what all images of a source are (`beit.tokenize.survey`), and masks that folders name (`mask_folders.py`).
"""
