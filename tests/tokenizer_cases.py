"""Tokenizers small enough to see through."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers


def byte_tokenizer() -> Tokenizer:
    """One token a byte: every character beyond ASCII takes several."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def word_tokenizer(text: str) -> Tokenizer:
    """SentencePiece's way: a space belongs to the word behind it, and the first one is dropped."""
    pieces = ["▁" + word for word in text.split(" ")]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, "?"]))}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def fallback_tokenizer() -> Tokenizer:
    """SentencePiece's way with characters that it does not know: a token a byte, <0xE3> and so on."""
    letters = [*map(chr, range(0x20, 0x7F)), "▁"]
    vocab = {piece: i for i, piece in enumerate([*letters, *(f"<0x{byte:02X}>" for byte in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    spaces, first = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), first])
    return tokenizer
