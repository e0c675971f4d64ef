"""Sites, edits, model identity, artifacts, provenance and errors: what every other package shares."""
