"""Images: reading, preprocessing and measures of quality."""
