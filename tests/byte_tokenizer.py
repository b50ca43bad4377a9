"""A tokenizer for tests: one token per byte, lossless, with an end-of-sequence token and no chat template."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BYTE_VOCABULARY = 258


def make_byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes, `<end>` (id 256) and `<pad>` (id 257)."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>", "<pad>"]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
