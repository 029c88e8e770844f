"""Commands that span stages: what will happen, whether all is well, what has happened.

They read files and ask the stages' forecasts. Not here: anything that a single stage does.
"""
