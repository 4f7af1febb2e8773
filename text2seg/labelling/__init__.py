"""Label a folder: every image against an ontology, into one COCO file, through a journal that outlives a crash."""
