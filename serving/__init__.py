"""One base model with several LoRA adapters behind an OpenAI-compatible API, on one machine."""
