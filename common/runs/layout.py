"""The names of the files of a run, once; torch-free. What is in them is said by the modules that write them."""

from __future__ import annotations

CONFIG, ENVIRONMENT, RUN_ID = "config.toml", "environment.json", "run_id"
"""All settings; where and by which code the run was started, each time, with its identity under the key `run_id`."""
ORIGIN = "origin.json"
"""The checkpoint that the run was told to go on from, where it was."""
METRICS, NONFINITE, TENSORBOARD, WANDB, PROFILE = "metrics.jsonl", "nonfinite.jsonl", "tensorboard", "wandb", "profile"
"""Records of the loop; skipped steps and their samples; folders of what is shown elsewhere, and of recorded steps."""
PICTURES, REPORT = "pictures", "report.html"
"""Folder of pictures: those of a few moments of the run, and what its report shows besides; that page."""
CHECKPOINTS, COMMIT, LATEST = "checkpoints", "COMMIT.json", "latest"
"""Folder of the checkpoints; in each the record that it is complete; beside them the name of the newest."""
ENCODER, MODEL, LAST = "encoder", "model", "last"
"""Folders of the pre-trained encoder, of the best fine-tuned model, and of the newest. `find_encoder` knows the first
two, too, which may not look into this room."""
MICRO_BATCH = "micro_batch_size"
"""Where checkpoints, and each start in environment.json, keep how many samples go through the model at a time; absent
in those of before."""
TOTAL_STEPS = "total_steps"
"""Where each start in environment.json keeps how many steps the whole run has; absent in those of before."""
DESCRIPTION = "config.json"
"""In each of these, and of a tokenizer's training in its directory: what the weights are, and where they come from."""
DATA = "data.json"
"""Which token store a pre-training reads, and in which order."""
INIT = "init.json"
"""The encoder that a pre-training began from, where it did: which, and what of it; a run that goes on reads this."""
FEATURES, PROBES = "features", ("linear-probe", "knn")
"""Folder of frozen features, and the tasks that leave NAME.json of what they measured on them."""
MASK_PROBE = "segmentation-probe"
"""Task that leaves NAME.json where a linear probe measures patches; it keeps no features."""
EVALUATION = "evaluation.json"
"""What `beit evaluate MODEL DATA --out RUN/evaluation.json` leaves; it goes before what the run measured itself."""
