"""Silence for the model libraries: what the user must know of their work, we say."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars, advice or warnings of the model libraries inside: what the user must know, we say."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    # bitsandbytes, which PEFT imports where it is installed, has advice about kernels for CPUs.
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "bitsandbytes")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
        transformers_logging.set_verbosity(level)
