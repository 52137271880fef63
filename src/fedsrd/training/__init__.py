"""Local fine-tuning of one client: base models, their LoRA adapter, supervised fine-tuning."""
