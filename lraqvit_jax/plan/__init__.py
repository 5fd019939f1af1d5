"""Which form each layer takes, and what that costs."""
