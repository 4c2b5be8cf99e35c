"""Training on a rented machine: `command` and `ssh` run here, `host` and `runpod` there, with the standard library alone."""
