"""The atlas: a static site made of the catalogue and the recorded evidence, with nothing fetched from elsewhere."""
