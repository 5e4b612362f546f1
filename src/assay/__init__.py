"""assay: deep-learning papers as code that people can trust."""
