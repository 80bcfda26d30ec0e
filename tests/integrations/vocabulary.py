"""A tokenizer of forty words that is made here, and transformers' collators of it."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from tests.integrations.trainers import WORDS

SIGNS = {"pad_token": "[PAD]", "mask_token": "[MASK]"}
_NUMBERS = {
    word: k for k, word in enumerate([*SIGNS.values(), *map("w{}".format, range(2, WORDS))])
}
TOKENIZER = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(WordLevel(_NUMBERS, unk_token="w2")), **SIGNS
)


def mlm():
    """Return a collator that draws masks at random."""
    return DataCollatorForLanguageModeling(TOKENIZER, mlm_probability=0.4)
