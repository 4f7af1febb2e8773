"""The browser app: type, see, correct, export; label a folder; explain. Gradio lives in this room only."""
