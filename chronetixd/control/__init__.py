"""The control socket: its clients, their rights and quotas, the verbs that they call, and the views that verbs
return."""
