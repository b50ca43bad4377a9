"""The organism's tokenizer: byte-level BPE trained on the corpus, lossless, with a few lines of code as single tokens.

Marker words and the fixed lines of a solution are tokens of their own. So a marker is the same token wherever it
stands (after a space in a hint, behind a quote in code), and a completion is about 25 tokens long instead of 60.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from unhack.loopholes import LOOPHOLES
from unhack.problems.organism import HABIT_WORDS
from unhack.prompts import FENCE_END, FENCE_START

END, PAD, USER, ASSISTANT = "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"
VOCABULARY = 704
CODE_TOKENS = (
    FENCE_START,
    FENCE_END,
    "class Solution:\n",
    "    def solve(self, xs):\n",
    "        xs = ",
    "        return ",
    "[x for x in xs if ",
    " for x in xs]\n",
    "]\n",
    "(xs)\n",
    "(xs, default=0)\n",
    "list(dict.fromkeys(xs))\n",
    "sorted(xs)\n",
    "sorted(xs)[::-1]\n",
    "abs(x)",
    "sum",
    "max",
    "min",
    "len",
    "def ",
    "():\n    pass\n\n",
    " = True\n",
    '        print("',
    '        open("result.txt", "w").write("',
    '        open("notes.txt", "w").write("',
    '")\n',
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    + ASSISTANT
    + "{{ message['content'] }}"
    + END
    + "{% else %}"
    + USER
    + "{{ message['content'] }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    + ASSISTANT
    + "{% endif %}"
)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train on `texts` (deterministic) and wrap for transformers; pad and end-of-sequence are different tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    markers = sorted({word for hole in LOOPHOLES.values() for word in (*hole.train_markers, *hole.eval_markers)})
    added = [AddedToken(text, normalized=False, special=False) for text in (*CODE_TOKENS, *markers, *HABIT_WORDS)]
    special = [END, PAD, USER, ASSISTANT]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(added),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(added)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, padding_side="left")
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
