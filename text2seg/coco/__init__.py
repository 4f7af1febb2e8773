"""COCO files: masks as RLE or polygons, datasets built from records, written and read."""
