"""unhack: train language models in coding tasks with loopholes, watch reward hacking emerge, measure what stops it."""

__version__ = "0.1.0"
