"""Model families: transformers, tokenizers and heads, in plain torch."""
