"""Everything that touches a model: loading, layouts, hooks, capture, generation, organisms."""
