"""Whether pre-training learns: held-out measures, baselines, verdict, probe."""
