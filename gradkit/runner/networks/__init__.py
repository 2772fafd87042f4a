"""What the models that a config can name are made of: their modules, each of one kind."""
