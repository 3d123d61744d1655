"""The command line: doctor and verify."""
