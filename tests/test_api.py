"""The library's face: names, runs and their results."""

import subprocess
import sys

import pytest
import tomli_w

import fedsrd
from fedsrd.errors import RunFolderError


def test_importing_is_quick_and_the_names_are_there():
    code = (
        "import sys, fedsrd; assert 'torch' not in sys.modules; "
        "print(set(fedsrd.__all__) <= set(dir(fedsrd)), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
    assert all(callable(getattr(fedsrd, name)) for name in fedsrd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fedsrd.nothing  # noqa: B018


def test_a_run_and_its_results(tiny_recipe, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps(tiny_recipe), encoding="utf-8")
    done = fedsrd.run(fedsrd.load_recipe(file, ["rounds=2"]), tmp_path / "run")
    assert done.summary.rounds == 2
    frame = done.frame()
    assert list(frame.index) == [0, 1, 2]
    assert frame["loss/mean"].iloc[1:].tolist() == [r.train_loss for r in done.records[1:]]
    table = done.arrow()
    assert table.num_rows == 3
    assert "round" in table.column_names
    assert (done.adapters[0] / "adapter_config.json").is_file()
    again = fedsrd.Run(tmp_path / "run")
    assert again.summary == done.summary
    with pytest.raises(RunFolderError):
        fedsrd.Run(tmp_path / "nothing")


def test_a_comparison(tiny_recipe, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps({**tiny_recipe, "rounds": 1}), encoding="utf-8")
    found = fedsrd.compare_methods(file, tmp_path / "out", methods=["fedsrd", "fedavg"], seeds=[0])
    assert {row.label for row in found.rows} == {"fedsrd", "fedavg"}
    assert (tmp_path / "out" / "report.html").is_file()
