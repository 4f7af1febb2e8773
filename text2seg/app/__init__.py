"""The browser app: segment images, label a folder, explain CLIP. Only this room imports Gradio."""
