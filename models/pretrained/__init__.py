"""The models that are shipped: one folder each, with its card."""
