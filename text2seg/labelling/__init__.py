"""Label a folder: every picture against an ontology, into one COCO file, through a journal that outlives a crash."""
