"""Training: captioned scenes, tokenizer, target, draft, export."""
