"""Prompts, the organisms' world, and which tokens of two tokenizers belong together."""
