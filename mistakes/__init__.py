"""The wrong answers that people really write; each must be rejected by the claim it names."""
