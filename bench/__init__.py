"""The measures of the project, each beside its baseline of the same run."""
