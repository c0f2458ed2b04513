"""The bodies of the longer commands: what the shell gives, read and made ready for the packages' own functions."""
