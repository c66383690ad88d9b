"""What makes and judges the weights. Imports `model`, is never imported by it, not in the image."""

import model  # noqa: F401 - before numpy, whose threads it sets
