"""Speed and accuracy of text2seg compared with the original flow, on the same weights and images, in one process."""
