"""What a user can set, as frozen dataclasses: a subject a file, each field with its default, its bounds and what it is.

`lraqvit_jax.config` reads them from a config file, once; nothing further inside looks a field up by its name.
"""
