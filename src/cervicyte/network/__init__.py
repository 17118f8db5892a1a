"""Network: ResNet-50 with CBAM, its first weights, and the model file."""
