"""COCO's annotations: where the files lie, what they hold, which pixels they cover. Masks of them: `coco.py` above."""
