"""Models for other programs: classes of transformers that compute the same, tokenizers, model cards, and the Hub."""
