"""Suites: stages that evaluate artefacts and write results.json."""
