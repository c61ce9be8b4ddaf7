"""One module per broker, one class per module; each is reached by URL, through the registry."""
