"""One interface for attention decoders, language models and internal language models."""
