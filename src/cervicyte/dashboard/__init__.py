"""One page in the browser: a cell in, its class and its map out."""
