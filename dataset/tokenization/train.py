"""Trains a byte-level BPE on texts."""

from collections.abc import Iterable

from dataset.tokenization.protocol import check_unicode
from dataset.tokenization.tokenizer_json import import_tokenizers

# Letters with their accents, one digit, or a run of other signs, each with the space before it; then white space.
WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"


def train_bpe(vocab_size: int, texts: Iterable[str]) -> str:
    """The tokenizer.json of a byte-level BPE with at most `vocab_size` pieces; the same for the same texts."""
    import_tokenizers()
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    def checked() -> Iterable[str]:
        for text in texts:
            check_unicode(text)
            yield text

    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(checked(), trainer)
    content: str = tokenizer.to_str()
    return content
