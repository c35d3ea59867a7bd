"""The command line. Importing it is quick: what the commands need is imported when they run."""

from diffmatch.cli.app import main as main
