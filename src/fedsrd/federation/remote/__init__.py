"""What client and server say to each other across a network, and what a client process does; knows no carrier."""
