"""A class for every pixel: the heads, the training, and images of any size through a model of one input size."""
