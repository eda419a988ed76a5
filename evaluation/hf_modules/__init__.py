"""Modules for Hugging Face `evaluate`: `evaluate.load("<folder of alignkit>/evaluation/hf_modules/mind")`, without a network."""
