"""Where weights come from: KIND:NAME is read by `KIND.read(NAME)`. One kind a file."""
