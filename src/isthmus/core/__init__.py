"""What every other package shares: sites, edits, model identity, artifacts, provenance, errors."""
