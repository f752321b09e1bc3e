"""What every other package uses: errors, files written whole, random numbers, records, class paths."""
