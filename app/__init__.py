"""What people touch: the command line, the Gradio page and the pipelines both call. Depends on every other package."""
