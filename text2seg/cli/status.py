"""How a command ends, as exit statuses; 0 is well."""

FAILED, INTERRUPTED = 1, 130
