"""The machinery of the kata suite. Nothing in reference/ or katas/ knows of it."""
