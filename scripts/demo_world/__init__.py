"""The demo world: emoji drawings of several vendors pasted into rendered scenes with exact masks."""
