"""What CLIP's score does when the picture is changed: small experiments, the same every time, one a file."""
