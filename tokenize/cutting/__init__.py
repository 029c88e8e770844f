"""What large images and files of several pages are cut into, decided by their headers; the making is in `packing/`."""
