"""The stubs and briefs: what to build, and by which rules. Pristine; practising copies them."""
