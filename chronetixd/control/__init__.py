"""Who asks: the control socket, its clients, their rights and quotas, the verbs, and what they are shown."""
