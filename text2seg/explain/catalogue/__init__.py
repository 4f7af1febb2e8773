"""The tools and their settings: one module a group, each with its `TOOLS`. No heavy imports here: the command line and
the app are made from these."""
