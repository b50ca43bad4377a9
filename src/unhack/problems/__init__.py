"""Programming tasks: where they come from and which split they belong to."""
