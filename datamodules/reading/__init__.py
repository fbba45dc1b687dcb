"""Files on disk become examples: find the files, pair them, decode images and masks."""
