"""The chat server: HTTP, the OpenAI-style API and the page."""
