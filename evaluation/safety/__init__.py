"""Safety checks of completions that run offline: copied training text, personal data, lexicons, refusals."""
