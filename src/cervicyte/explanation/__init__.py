"""Why the network decides: class activation maps, and pictures of them."""
