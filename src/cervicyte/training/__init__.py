"""Training: recipe, augmentation, and one readable loop."""
