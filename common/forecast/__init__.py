"""What a training or a tokenisation will take, by arithmetic: memory, disk, time, and the rules it must keep.

Not here: what a running one has been measured to take (`training`), and what the settings of a stage mean, which each
stage says in its module `forecast`.
"""
