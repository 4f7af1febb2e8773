"""SAM: images and prompts to candidate masks, and from candidates to segments. One file a family."""
