"""Threads wait briefly before they sleep, unless the user says otherwise, and before torch is loaded."""

import os
import subprocess
import sys

import pytest

from fedsrd.threads import wait_briefly


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "1000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
        ({"GOMP_SPINCOUNT": "300000"}, "300000"),
    ],
)
def test_a_users_own_setting_stays(monkeypatch, given, expected):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    assert os.environ.get("OMP_WAIT_POLICY") == given.get("OMP_WAIT_POLICY")


@pytest.mark.parametrize("module", ["fedsrd.cli", "fedsrd.flower.client_app", "fedsrd.flower.server_app"])
def test_torch_is_not_loaded_before(module):
    """libgomp reads the setting when it is loaded, which is with torch."""
    pytest.importorskip("flwr")
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
