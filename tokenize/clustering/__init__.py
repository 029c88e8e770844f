"""Words by k-means: of pixels, or of a teacher's features."""
