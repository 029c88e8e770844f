"""`beit report`: one page about runs, from the images to the model."""
