"""Images, files and folders: read, written and scanned, here and in object stores."""
