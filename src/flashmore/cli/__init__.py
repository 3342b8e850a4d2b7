"""The command line: parse, call, print, exit code; one file a command."""
