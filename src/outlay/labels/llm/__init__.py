"""Labels of a language model behind an endpoint that speaks as OpenAI's do."""
