"""What users bring: files, names and layouts of other tools, turned into plain state dicts."""
