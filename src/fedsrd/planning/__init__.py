"""What a federation will cost, before anybody pays: bytes, time on the links, memory. No weights are read."""
