"""One training loop for every stage: task, trainer, engine, optimizer, precision, averages, saving.

Not here: the files of a run (`runs`) and its processes (`processes`).
"""
