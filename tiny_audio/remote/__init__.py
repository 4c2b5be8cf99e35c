"""Training on a rented machine.

`command` and `ssh` run here; `host`, `watchdog`, `state` and `runpod` run there, with the standard library alone.
"""
