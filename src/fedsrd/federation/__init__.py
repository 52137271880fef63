"""The round: a client and a server that exchange bytes and small typed messages, and the driver of a local run."""
