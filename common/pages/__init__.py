"""What is looked at: charts, tables of images, pages.

Not here: what they show, which is the stages' own.
"""
