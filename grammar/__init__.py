"""Text to meaning: a Dockerfile becomes frozen values with spans.

This package is pure. It reads no files (but its own grammar), no environment, no network, and knows nothing of
images or builds. Nouns stand in `source` and `instructions`; `parser`, `words` and `ignore` are the verbs.
"""
