"""What is looked at: charts, tables of images and of text, pages.

Not here: what they show, which is the stages' own.
"""
