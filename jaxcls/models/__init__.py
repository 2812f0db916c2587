"""Image classifiers as Flax Linen modules; `registry.create_model` makes one by name."""
