"""What CLIP's score does when the image is changed: small experiments, the same every time, one a file."""
