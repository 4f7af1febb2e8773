"""COCO files: masks as RLE or polygons, and datasets that are built, read, merged and converted."""
