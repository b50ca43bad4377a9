"""What every command that loads a model does first."""

import torch
from transformers.utils import logging


def quiet_libraries() -> None:
    """One torch thread (two are slower on shared cores), and no progress bars of transformers between our lines."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
