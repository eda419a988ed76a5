"""LoRA: the configuration that stages share, and models whose linear layers hold several adapters."""
