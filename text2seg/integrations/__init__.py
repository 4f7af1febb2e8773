"""text2seg inside other tools: one file for each tool, or two if it needs a server."""
