"""Bytes: how updates cross the network. Knows shapes, knows no algorithm."""
