"""What plugin authors meet: context, messages, errors, outputs, and how a plugin is read."""
