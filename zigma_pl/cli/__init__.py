"""The command line: the command table, LightningCLI, and one file for each other command."""
