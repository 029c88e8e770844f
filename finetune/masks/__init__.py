"""Images with a class for every pixel: finding the pairs, what masks mean, checking them, reading them in order."""
