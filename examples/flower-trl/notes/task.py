"""Model, data and training of the project; nothing in here knows of FedSRD."""

import tempfile
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from notes.tiny import tiny

LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


def load_model(name: str) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The base model with a new adapter, whose parameters are float32 whatever the base's are."""
    if name == "tiny":
        model, tokenizer = tiny()
    else:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    torch.manual_seed(0)  # of the adapter's start: the same run twice gives the same
    return get_peft_model(model, LORA), tokenizer


def load_data(site: int) -> tuple[Dataset, Dataset]:
    """A site's own rows, to train on and held out."""
    file = Path(__file__).parent / "data" / f"site-{site % 2}.jsonl"
    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset("json", data_files=str(file), split="train", cache_dir=cache, keep_in_memory=True)
    split = rows.train_test_split(test_size=4, seed=0)
    return split["train"], split["test"]


def make_trainer(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, site: int, folder: str, **options: object
) -> SFTTrainer:
    """TRL's trainer of this site's rows."""
    train, test = load_data(site)
    args = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        max_length=128,
        lr_scheduler_type="constant",
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    return SFTTrainer(model=model, args=args, train_dataset=train, eval_dataset=test, processing_class=tokenizer)
