"""Explaining what a network says of an input: methods that share credit out, and measures that judge them."""
