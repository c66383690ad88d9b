"""What makes and judges the weights. Imports `model`, is never imported by it, not in the image."""
