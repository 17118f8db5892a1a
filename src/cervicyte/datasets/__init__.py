"""From a folder or manifest of labelled cells to a split that keeps what belongs together whole."""
