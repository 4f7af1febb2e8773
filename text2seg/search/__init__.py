"""Pictures by words: what CLIP saw in each picture of a folder, kept in a vector index on disk."""
