"""Images by words: what CLIP saw in each image of a folder, kept in a vector index on disk."""
