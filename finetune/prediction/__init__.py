"""Labels for new images, and the files they are written to."""
