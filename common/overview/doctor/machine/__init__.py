"""What may be wrong with a machine: one module per subject, whose functions `check_...` yield findings.

`probe.py` and `two_ranks.py` are run as processes of their own. What somebody made is looked at in `health/`.
"""
