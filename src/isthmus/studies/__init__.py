"""Studies: questions about one or two models, answered in numbers and pictures."""
