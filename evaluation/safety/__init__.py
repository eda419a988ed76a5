"""Safety checks that run offline: refusals and attacks, toxicity, copies, personal data, bias and truthfulness sets."""
