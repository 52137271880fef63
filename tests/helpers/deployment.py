"""docs/deploy.md, run command by command on loopback: the page's own blocks, in folders of a server and its sites."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from fedsrd.runs.folder import RunFolder

REPOSITORY = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+) ?([\w -]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks():
    """The page's shell and recipe blocks: (words of the fence, text)."""
    page = (REPOSITORY / "docs" / "deploy.md").read_text(encoding="utf-8")
    return [((kind, *words.split()), text) for kind, words, text in FENCE.findall(page) if words]


def block(*words):
    """The one block whose fence says this."""
    (found,) = [text for fence, text in blocks() if fence == words]
    return found


class Deployment:
    """A server and sites, each in its folder under `home`, as processes of their own."""

    def __init__(self, home, sites):
        self.home, self.sites = home, sites
        self.server = home / "server"
        self.processes = {}
        self.env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FLWR_HOME": str(home / "flwr"),
            "APP": str(home / "app"),
            "SERVER": "localhost",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.env.pop("VIRTUAL_ENV", None)
        # The app as a clone has it: no run of the checkout's, no caches.
        (home / "app").mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(REPOSITORY / name, home / "app" / name)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / "src", home / "app" / "src", ignore=ignored)
        for folder in (self.server, *(self.folder(site) for site in sites)):
            folder.mkdir(parents=True)
        self.everywhere = block("sh", "everywhere")

    def folder(self, site):
        return self.home / "sites" / site

    def shell(self, text, folder, **more):
        """Runs a block to its end; its output."""
        done = subprocess.run(
            ["bash", "-euc", self.everywhere + text],
            cwd=folder,
            env={**self.env, **more},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, name, text, folder, **more):
        """Starts a block that goes on; its output goes to FOLDER/NAME.out."""
        with (folder / f"{name}.out").open("ab") as stream:
            self.processes[name] = subprocess.Popen(
                ["bash", "-euc", self.everywhere + text],
                cwd=folder,
                env={**self.env, **more},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.processes[name]

    def kill(self, name, how=signal.SIGKILL):
        """Kills a process and everything that it started."""
        process = self.processes.pop(name, None)
        if process is not None and process.poll() is None:
            os.killpg(process.pid, how)
        if process is not None:
            process.wait(30)

    def stop(self):
        for name in list(self.processes):
            self.kill(name)

    def superlink(self):
        """Starts the SuperLink and waits until it answers."""
        self.start("superlink", block("sh", "server", "background"), self.server)
        for _ in range(60):
            time.sleep(1)
            done = subprocess.run(
                ["flwr", "ls", "hospitals"], env=self.env, cwd=self.server, capture_output=True, timeout=60
            )
            if done.returncode == 0:
                return
        raise AssertionError((self.server / "superlink.out").read_text())

    def set_up(self, recipe):
        """Certificates, SuperLink, keys, data and admission: steps 1 to 5. `recipe` is written for the server, with the
        sites' public keys.
        """
        certificates, connection = [text for fence, text in blocks() if fence == ("sh", "server")]
        self.shell(certificates, self.server)
        self.shell(connection, self.server)
        self.superlink()
        for place, site in enumerate(self.sites):
            folder = self.folder(site)
            rows = [{"instruction": f"add {i} and {place}", "response": f"it is {i + place}"} for i in range(12)]
            (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            shutil.copy(self.server / "certs" / "ca.crt", folder / "ca.crt")
            self.shell(block("sh", "site"), folder, SITE=site)
            (folder / "site.toml").write_text(block("toml", "rules"))
            shutil.copy(folder / "node.key.pub", self.server / f"{site}.pub")
            self.shell(block("sh", "server", "per-site"), self.server, SITE=site)
            key = (folder / "name.pub").read_text().strip()
            recipe, count = re.subn(rf'(name = "{site}", key = )"[^"]*"', rf'\1"{key}"', recipe)
            assert count == 1
        (self.server / "recipe.toml").write_text(recipe, encoding="utf-8")

    def agree(self):
        """The sites exchange their public keys, and let nothing out unmasked."""
        keys = {site: (self.folder(site) / "name.pub").read_text().strip() for site in self.sites}
        for site in self.sites:
            lines = "".join(f'{name} = "{key}"\n' for name, key in keys.items())
            (self.folder(site) / "peers.toml").write_text(f"[peers]\n{lines}")
            rules = self.folder(site) / "site.toml"
            rules.write_text(rules.read_text().replace("[rules]\n", "[rules]\nsecure_aggregation = true\n", 1))

    def supernode(self, site, **more):
        """Starts a site's SuperNode: step 6; with the peers file, where there is one."""
        port = str(9100 + self.sites.index(site)) if site in self.sites else "9150"
        text = block("sh", "site", "background")
        if (self.folder(site) / "peers.toml").exists():
            text = text.replace("rules=", 'peers=\\"$PWD/peers.toml\\" rules=', 1)
        self.start(site, text, self.folder(site), SITE=site, PORT=port, **more)

    def run(self, words="run"):
        """Starts the run (`words`: "resume": goes on with it)."""
        return self.start(words, block("sh", "server", words), self.server)

    @property
    def output(self):
        """What the runs have printed."""
        return "".join(file.read_text() for file in sorted(self.server.glob("r*.out")))

    def records(self):
        """The records of the complete rounds."""
        return RunFolder(self.server / "run").records()

    def wait_for(self, what, seconds=300):
        """Waits until `what()` is true."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if what():
                return
            time.sleep(0.2)
        raise AssertionError(self.output + (self.server / "superlink.out").read_text()[-3000:])

    def wait_for_round(self, number, seconds=300):
        """Waits until a round is complete."""
        self.wait_for(lambda: len(self.records()) > number, seconds)

    def wait_for_the_end(self, seconds=400):
        """Waits for the summary; gives it."""
        folder = RunFolder(self.server / "run")
        self.wait_for(lambda: folder.complete, seconds)
        return folder.summary()

    def digests(self):
        """Each site's version and digest, from its own disk."""
        from fedsrd.federation.remote.replica import Replica

        found = {}
        for site in self.sites:
            (federation,) = [path for path in (self.folder(site) / "state").iterdir() if len(path.name) == 16]
            held = Replica(federation.parent, federation.name, site).state()
            found[site] = (held.version, held.digest)
        return found
