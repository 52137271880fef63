"""The project's own model and training; nothing in here knows of FedSRD."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(name: str) -> tuple[PeftModel, AutoTokenizer]:
    """A base model with a LoRA adapter."""
    if name == "embedded":
        from fedsrd.training.embedded import resolve

        name = resolve("embedded:smollm2-135m")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(model, lora), AutoTokenizer.from_pretrained(name)


def fit(model: PeftModel, tokenizer: AutoTokenizer, texts: list[str]) -> float:
    """One pass over the texts; the mean loss."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    total = 0.0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
    return total / len(texts)
