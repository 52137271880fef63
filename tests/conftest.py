"""A tiny untrained model with a tokenizer of its own, made on the spot: fast tests need no download."""

import json
import os
import tempfile
from pathlib import Path

import hypothesis
import pytest

collect_ignore_glob = ["fuzz/*"]
"""Programs for `make fuzz`, whose library the tests do without."""

# Machines differ, and slow ones are no failures: no time is asserted. In CI the examples are the same every time, so
# that a failure belongs to the change; elsewhere every run looks at new ones.
hypothesis.settings.register_profile("fedsrd", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("fedsrd")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_STATE = tempfile.TemporaryDirectory(prefix="fedsrd-tests-")
os.environ["FEDSRD_STATE"] = _STATE.name
"""Of sites that say nothing of it: not the home of whoever runs the tests."""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a Llama of 2 layers and width 32 (untrained, float32), pad token equal to end of text as SmolLM2's
    is."""
    import tiny

    folder: Path = tmp_path_factory.mktemp("tiny-model")
    tiny.make(folder)
    return folder


@pytest.fixture
def tiny_recipe(tiny_model, tmp_path) -> dict:
    """The tree of a recipe of two clients on the tiny model, with their data in files."""
    clients = []
    for name, offset in (("left", 1), ("right", 100)):
        rows = [{"instruction": f"add {i} and {offset}", "response": f"it is {i + offset}"} for i in range(12)]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        clients.append({"name": name, "data": {"source": str(file)}})
    return {
        "name": "tiny",
        "rounds": 3,
        "model": {"id": str(tiny_model), "dtype": "float32", "device": "cpu"},
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
        "training": {"steps": 2, "batch_size": 2, "accumulation": 2, "learning_rate": 1e-2, "max_length": 64},
        "method": {"name": "fedsrd"},
        "clients": clients,
        "evaluation": {"examples": 4, "sets": [{"name": "left", "data": clients[0]["data"]}]},
    }
