"""The mathematics of FedSRD as pure functions over tensors (arXiv 2510.04601): sparsify, reconstruct, decompose."""
