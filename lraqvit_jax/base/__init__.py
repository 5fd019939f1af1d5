"""What everything rests on: errors, the console, files, arguments, trees. Imports nothing of the house."""
