"""An in-process Flower grid: nodes that answer at once, or are away, fail, lie or sleep, as a test says."""

import uuid

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


class ToyGrid(Grid):
    """Nodes 10, 11, ... with the node configs given; `app(message, context)` answers.

    Attributes:
        away: node ids that are not there.
        silent: ids of nodes that are there and never answer.
        meddle: called with (node id, reply), gives the reply that arrives, or None.
        sent: every message that was pushed.
    """

    def __init__(self, app, configs):
        self.app = app
        self.configs = {10 + place: config for place, config in enumerate(configs)}
        self.away, self.silent, self.sent, self.replies = set(), set(), [], {}
        self.meddle = lambda node, reply: reply
        self.state = {node: RecordDict() for node in self.configs}

    def set_run(self, run):
        pass

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def get_node_ids(self):
        return [node for node in self.configs if node not in self.away]

    def push_messages(self, messages):
        found = []
        for message in messages:
            name = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = name
            found.append(name)
            self.sent.append(message)
            node = message.metadata.dst_node_id
            if node in self.silent or node in self.away:
                continue
            reply = self.meddle(node, self.app_reply(message, node))
            if reply is not None:
                self.replies[name] = reply
        return found

    def app_reply(self, message, node):
        """What the app of a node answers; what it raises is an error reply, as Flower makes it."""
        context = Context(1, node, self.configs[node], self.state[node], {})
        try:
            return self.app(message, context)
        except Exception as error:
            reason = str(type(error)) + ":<'" + str(error) + "'>"
            return Message(Error(code=2, reason=reason), reply_to=message)

    def pull_messages(self, message_ids):
        return [self.replies.pop(name) for name in list(message_ids) if name in self.replies]

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))
