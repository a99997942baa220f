"""The claims: one Hypothesis property each, bound to whichever implementation is on trial."""
