"""FedSRD: federated LoRA fine-tuning of LLMs in a fraction of the bytes (arXiv 2510.04601)."""

__version__ = "0.1.0"
