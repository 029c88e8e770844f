"""What a source is, said before anything is made of it: `beit sources`, and `beit tokenize --dry-run`.

Here: counts by format, size, depth and colours, labels, splits, what would be left out and why, duplicates; as one
table, as JSON and as a picture. Headers are read, of many images those of a spread sample. Not here: what tokenising
takes (`tokenize/forecast.py`), and what all stages take (`plan.py`).
"""
