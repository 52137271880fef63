"""An observer of runs for tests."""


class Watch:
    """Keeps what it is told."""

    def __init__(self):
        self.said, self.warned, self.rounds = [], [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def say(self, text):
        self.said.append(text)

    def warn(self, text):
        self.warned.append(text)

    def activity(self, *_):
        pass

    def round_done(self, record):
        self.rounds.append(record.round)
