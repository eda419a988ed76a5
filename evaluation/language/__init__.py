"""Measures of language models and of their completions that need no judge."""
