"""The terminal: parses, calls a workflow, prints."""
