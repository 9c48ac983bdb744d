"""What the measurements mean: results records, and the tables and figures rendered from them."""
