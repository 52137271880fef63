"""Quality of an adapter on held-out examples."""
