"""A site with rules of its own, and a server that may ask anything of it."""

import json

from toy import TABLE, ToyTrainer, build, config_of

from fedsrd.federation.messages import Update
from fedsrd.federation.remote import header
from fedsrd.federation.remote.respond import respond
from fedsrd.federation.server import Server

RUN, OTHER_RUN = "a" * 16, "b" * 16
HELLO = {"names": ["c0"], "node": 7, "nonce": "0" * 32}


class Runtime:
    """`respond.ClientRuntime` whose training is a toy; notes every training."""

    strict = True

    def __init__(self, knows_model=True, table=TABLE):
        self.knows_model = knows_model
        self.trained = []
        self.loaded = []
        self._table = table

    def table(self, job):
        self.loaded.append(job.recipe)
        return self._table

    def trainer(self, job, site, *_):
        trainer = ToyTrainer(1)
        trainer.seen = self.trained
        return trainer

    def evaluate(self, client, job, round_number):
        return {"num-examples": 8, "eval_loss": 0.25}

    def finish(self, *_):
        pass


class Asking:
    """A server of one site, and the site: `train` gives what the server would see.

    Args:
        state: the site's folder.
        rules: text of its rules; None: it has none.
    """

    def __init__(self, state, rules=None, runtime=None, run=RUN):
        self.server = Server(config_of(build("fedavg")))
        self.runtime = runtime or Runtime()
        self.state = state
        self.run = run
        self.settings = {"client": "c0", "state": str(state)}
        self.out = []
        if rules is not None:
            self.allow(rules)

    def allow(self, rules):
        """Sets the site's rules."""
        file = self.state.parent / f"{self.state.name}.toml"
        file.write_text(rules)
        self.settings["rules"] = str(file)

    def send(self, envelope):
        """What leaves the site for a message: a reply, or an error's text."""
        try:
            reply = respond(envelope, self.settings, self.runtime, 7)
        except Exception as error:
            self.out.append((str(error).encode(), b"", b""))
            raise
        self.out.append(reply.parts)
        return reply

    def hello(self):
        """The answer to a greeting."""
        return self.send(header.pack(header.Hello(federation=self.run, **HELLO)))

    def task(self, **changes):
        """A task as the server's; `changes` are of the header, with dots."""
        task = self.server.task("c0")
        about, payload = header.header_of_sync(task.sync)
        job = {
            "method": {"name": "fedavg"},
            "seed": 0,
            "uplink": {},
            "recipe": {
                "model": {"id": "org/model", "revision": "main"},
                "lora": {"rank": 4},
                "training": {"steps": 2, "batch_size": 2, "accumulation": 2},
            },
        }
        tree = {
            "kind": "train",
            "federation": self.run,
            "name": "c0",
            "reset": False,
            "job": job,
            "sync": about.model_dump(),
            "round": task.round,
            "version": task.version,
            "digest": task.digest,
        }
        for where, value in changes.items():
            *above, last = where.split(".")
            node = tree
            for part in above:
                node = node[part]
            node[last] = value
        return header.Envelope(json.dumps(tree), payload)

    def order(self, kind):
        """An order of another kind."""
        tree = json.loads(self.task().text)
        for name in ("version", "digest", *(["round"] if kind == "finalize" else [])):
            del tree[name]
        return header.Envelope(json.dumps({**tree, "kind": kind}), self.task().payload)

    def train(self, envelope=None, **changes):
        """The header and the payload of the answer to a task."""
        reply = self.send(envelope or self.task(**changes))
        return header.unpack(reply.message, header.TrainReply)

    def round(self, **changes):
        """A round that closes with the answer; gives its header."""
        said, payload = self.train(**changes)
        assert said.failure is None, said.failure
        self.server.close_round([Update("c0", said.round, said.examples, payload, None, {})])
        return said

    def lines(self):
        """All lines of the site's audit log."""
        from fedsrd.federation.remote.audit import Audit

        return [entry.line for entry in Audit(self.state / "audit").entries()]
