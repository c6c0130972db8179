"""OpenAI's Files and Batches: objects and lines (pure), a store on disk, and what runs batches."""
