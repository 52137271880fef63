"""A hub's cache as if models and data sets had been loaded from it."""

from huggingface_hub import constants


def cached(monkeypatch, folder, *names):
    """Names such as "models--org--name" are in the cache, which lies in `folder`; no others are."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    for name in names:
        (folder / name / "snapshots").mkdir(parents=True)
