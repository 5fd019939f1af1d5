"""Stages: glue between the algorithms and the work directory. Each is a module with `run(workspace)`."""
