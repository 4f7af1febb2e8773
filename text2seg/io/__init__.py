"""Files in and out: images, folders of images, file names, object storage, and files written whole or not at all."""
